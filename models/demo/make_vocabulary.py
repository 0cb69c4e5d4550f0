"""Write vocabulary.txt: the content words of the captions that the demo model was trained on.

    python make_vocabulary.py EMOJIBASE_DATA NOTO FLUENT > vocabulary.txt

The arguments are the unpacked npm packages `emojibase-data`, `@iconify-json/noto` and
`@lobehub/fluent-emoji-3d`. Captions were made from the labels and tags of the first, of those
emoji that have a picture in one of the others, with words for style and background added.
"""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

COLOURS = (
    "white black gray red orange yellow green dark green teal light blue blue dark blue "
    "purple pink brown beige"
)
STYLES = "3d render of, 3d, 3d emoji of, flat illustration of, flat, drawing of, on a background"
# Words without content; the node treats them as known without a list.
FUNCTION_WORDS = set("a an and as at by for from in next of off on or out the to up with".split())


def bare(hexcode: str) -> str:
    """A code without variation selectors, which the three packages write differently."""
    return "-".join(part for part in hexcode.lower().split("-") if part != "fe0f")


def drawn(noto: Path, fluent: Path) -> set[str]:
    """Codes of all emoji that have a picture."""
    icons = json.loads((noto / "icons.json").read_text("utf-8"))
    names = json.loads((noto / "chars.json").read_text("utf-8"))
    aliases = icons.get("aliases", {})
    codes = {
        bare(code)
        for code, name in names.items()
        if name in icons["icons"] or aliases.get(name, {}).get("parent") in icons["icons"]
    }
    return codes | {bare(file.stem) for file in (fluent / "assets").glob("*.webp")}


def label(text: str) -> str:
    """A label as captions wrote it: `flag: Japan` became `flag of japan`."""
    text = text.lower().replace("“", "").replace("”", "").replace("’", "'")
    for prefix, instead in (("flag: ", "flag of "), ("keycap: ", "keycap ")):
        if text.startswith(prefix):
            text = instead + text.removeprefix(prefix)
    return text.replace(": ", " with ", 1)


def captions(emojibase: Path, pictures: set[str]) -> Iterator[str]:
    for emoji in json.loads((emojibase / "en" / "data.json").read_text("utf-8")):
        for version in (emoji, *emoji.get("skins", ())):
            if bare(version["hexcode"]) in pictures:
                yield label(version["label"])
                yield from (tag.lower() for tag in emoji.get("tags", ()))


def words(text: str) -> Iterator[str]:
    """Runs of letters, as the tokenizer splits them; single letters carry no content."""
    for word in re.findall(r"'(?:s|t|re|ve|m|ll|d)(?![^\W\d_])|[^\W\d_]+", text):
        if len(word) > 1 and not word.startswith("'"):
            yield word


def main() -> None:
    emojibase, noto, fluent = (Path(argument) for argument in sys.argv[1:4])
    texts = [COLOURS, STYLES, *captions(emojibase, drawn(noto, fluent))]
    known = {word for text in texts for word in words(text)} - FUNCTION_WORDS
    print("# Content words of the captions that the demo model was trained on, made by")
    print("# make_vocabulary.py from the labels and tags of emojibase (MIT, Miles Johnson).")
    print("\n".join(sorted(known)))


if __name__ == "__main__":
    main()
