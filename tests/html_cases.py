"""Shared by tests of HTML pages."""

from html.parser import HTMLParser


class Checked(HTMLParser):
    """Collects the elements, and checks that they are closed in order."""

    ALONE = frozenset({"meta", "img", "input"})

    def __init__(self, text):
        super().__init__()
        self.found, self.open = [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in self.ALONE:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in self.ALONE:
            assert self.open.pop() == tag
