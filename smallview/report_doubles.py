"""The part of a report that shows pictures which are there twice: the same pixels, and the same picture in another form or a part of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from smallview.data.pack import Pack
from smallview.data.sources import Source
from smallview.data.subsets import taken
from smallview.data.survey import Survey, survey
from smallview.evaluation.crops import find_crops, with_crops
from smallview.evaluation.twins import twin_groups
from smallview.output.markup import Markup, join, name_of, tag
from smallview.output.sprites import Sprites, sheet_of, thumbs

GROUPS, ACROSS = 24, 6  # shown of each kind, and pictures of a group
LONGEST = 100  # letters of a name
Positions = npt.NDArray[np.int64]


def doubles_part(source: Source, pack: Pack, positions: Positions, most_bytes: int, threads: int) -> tuple[Markup, Markup]:
    """(which of a report's pictures are there twice, the style that their sprites need).

    pack: the decoded pictures, as the report has them; positions: where those that were drawn lie in the source.
    """
    some = taken(source, positions[pack.index], source.name)
    seen = survey(replace(some, reader=lambda i, short_side: (pack[i], None), array=None, place=None), most=0, threads=threads)
    exact, near = twin_groups(seen, mirrored=True)
    again = np.concatenate([np.zeros(0, np.int64), *(group[1:] for group in (*exact, *near))])
    crops = find_crops(seen, np.delete(np.arange(len(seen)), again))
    near = with_crops(near, crops)
    if not exact and not near:
        return tag("p", f"None of the {len(seen):,} pictures was found twice."), Markup("")
    spare = {int(i) for group in (*exact, *near) for i in group[1:]}
    told = (
        f"{len(spare):,} of {len(seen):,} pictures {'is' if len(spare) == 1 else 'are'} there already: as the same pixels, at the size "
        "that was read here, or as the same picture in another size, quality or brightness, mirrored, or as a part of it."
    )
    parts = {crop.part: f"a part: {crop.kept[0]} by {crop.kept[1]} %" for crop in crops if crop.less}
    shown = [[int(i) for i in group[:ACROSS]] for kind in (exact, near) for group in kind[:GROUPS]]
    place = {i: k for k, i in enumerate(dict.fromkeys(i for group in shown for i in group))}
    order = list(place)
    sprites = sheet_of("d0", len(order), lambda k: pack[int(seen.index[order[k]])], most_bytes)
    content = join(
        tag("p", told, " ", tag("code", "smallview duplicates"), " looks through all pictures and lists them."),
        _kind("The same pixels", exact, seen, sprites, place, {}),
        _kind("Nearly the same", near, seen, sprites, place, parts),
    )
    return content, sprites.css


def _kind(
    title: str, groups: list[Positions], seen: Survey, sprites: Sprites, place: dict[int, int], words: dict[int, str]
) -> Markup | None:
    """The groups of a kind, the pictures of each side by side."""
    if not groups:
        return None
    lists = []
    for group in groups[:GROUPS]:
        some = [int(i) for i in group[:ACROSS]]
        names = [_called(seen.name(i)) for i in some]
        below = [
            join(tag("b", words[i], tag("br")) if i in words else None, name_of(name))
            for i, name in zip(some, names, strict=True)
        ]
        more = tag("li", f"and {len(group) - ACROSS:,} more") if len(group) > ACROSS else None
        lists.append(tag("ul", thumbs(sprites, [place[i] for i in some], names, below), more, class_="thumbs"))
    count = f"{len(groups):,} group{'s' * (len(groups) != 1)}" + f", {GROUPS} of them shown" * (len(groups) > GROUPS)
    return join(tag("h3", title), tag("p", f"{count}."), tag("div", *lists, class_="groups"))


def _called(name: str) -> str:
    return name if len(name) <= LONGEST else f"…{name[1 - LONGEST :]}"
