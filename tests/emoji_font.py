"""A small emoji font with bitmaps, written by fontTools."""

import io

from fontTools.feaLib.builder import addOpenTypeFeaturesFromString
from fontTools.fontBuilder import FontBuilder
from fontTools.misc import sstruct
from fontTools.ttLib import newTable
from fontTools.ttLib.tables import C_B_D_T_, E_B_L_C_, BitmapGlyphMetrics

GLYPHS = [".notdef", "tone", "hand", "flag", "toned_hand", "hand_flag", "runner"]
FEATURES = """
lookup sequences { sub hand tone by toned_hand; sub hand flag by hand_flag; } sequences;
lookup single { sub flag by hand; } single;
feature ccmp { lookup sequences; lookup single; } ccmp;
"""
IMAGES = {
    17: (C_B_D_T_.cbdt_bitmap_format_17, BitmapGlyphMetrics.SmallGlyphMetrics),
    18: (C_B_D_T_.cbdt_bitmap_format_18, BitmapGlyphMetrics.BigGlyphMetrics),
}


def _zeroed(metrics, form):
    for name in sstruct.getformat(form)[1]:
        setattr(metrics, name, 0)
    return metrics


def _strike(font, size, pngs, index_format, image_format):
    strike, table = E_B_L_C_.Strike(), E_B_L_C_.BitmapSizeTable()
    for direction in ("hori", "vert"):
        line = _zeroed(E_B_L_C_.SbitLineMetrics(), E_B_L_C_.sbitLineMetricsFormat)
        setattr(table, direction, line)
    table.colorRef, table.ppemX, table.ppemY, table.bitDepth, table.flags = 0, size, size, 32, 1
    strike.bitmapSizeTable = table
    index = E_B_L_C_.eblc_sub_table_classes[index_format](None, font)
    index.indexFormat, index.imageFormat, index.names = index_format, image_format, list(pngs)
    strike.indexSubTables = [index]
    glyphs = {}
    for name, png in pngs.items():
        kind, metrics = IMAGES[image_format]
        glyphs[name] = glyph = kind(None, font)
        glyph.metrics = _zeroed(metrics(), metrics.binaryFormat)
        glyph.imageData = png
    return strike, glyphs


def emoji_font(strikes, index_format=1, image_format=17):
    """Return the file of a font with these strikes: {pixels per em: {glyph: PNG}}."""
    builder = FontBuilder(1024, isTTF=False)
    builder.setupGlyphOrder(GLYPHS)
    builder.setupCharacterMap({0x1F3FD: "tone", 0x270B: "hand", 0x1F3F3: "flag"})
    font = builder.font
    addOpenTypeFeaturesFromString(font, FEATURES)
    places, data = newTable("CBLC"), newTable("CBDT")
    places.version = data.version = 3.0
    made = [_strike(font, size, p, index_format, image_format) for size, p in strikes.items()]
    places.strikes, data.strikeData = [s for s, _ in made], [g for _, g in made]
    font["CBLC"], font["CBDT"] = places, data
    del font["head"]
    out = io.BytesIO()
    font.save(out)
    return out.getvalue()
