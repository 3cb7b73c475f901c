"""What the data doctor can find: the stable name of each kind of finding, how bad it is, and the words for it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Severity(IntEnum):
    """How bad a finding is; the worst first."""

    FAULT = 0
    """Labels or files are wrong: training would stop, or learn something false. The exit code becomes 1."""

    WARNING = 1
    """Probably wrong, or right but worth a look."""

    NOTE = 2
    """Good to know."""


@dataclass(frozen=True)
class Kind:
    """One kind of finding.

    Attributes:
        name: stable, for scripts.
        title: what there is, in a few words.
        hurts: why it matters.
        mend: what to do.
        of_samples: it concerns single samples, so that leaving these out mends it.
    """

    name: str
    severity: Severity
    title: str
    hurts: str
    mend: str
    of_samples: bool = True


FAULT, WARNING, NOTE = Severity

# --- files and pairs -------------------------------------------------------------------------------------------------

ORPHAN_IMAGE = Kind(
    "orphan-image",
    FAULT,
    "photos without a mask",
    "Tools that pair two sorted lists shift every later pair by one, without a word; ours refuses the data set.",
    "Add the missing masks, or move the photos away. Often only the file names differ.",
)
ORPHAN_MASK = Kind(
    "orphan-mask",
    FAULT,
    "masks without a photo",
    "Tools that pair two sorted lists shift every later pair by one, without a word; ours refuses the data set.",
    "Add the missing photos, or move the masks away. Often only the file names differ.",
)
SIZE_MISMATCH = Kind(
    "size-mismatch",
    FAULT,
    "photo and mask differ in size",
    "Nobody can say which mask pixel belongs to which photo pixel.",
    "Export the masks at the size of the photos; never stretch labels with a smoothing filter.",
)
EXIF_ONE_SIDE = Kind(
    "exif-one-side",
    FAULT,
    "EXIF turns the photo and not its mask, or the other way round",
    "The camera's orientation flag was lost when the mask was drawn: the mask lies across the turned photo.",
    "Turn the mask as the flag says, or remove the flag if the photo was labelled lying down.",
)
EXIF_UNCLEAR = Kind(
    "exif-unclear",
    WARNING,
    "EXIF turns the photo, and the mask fits either way",
    "The flag mirrors the photo or turns it by half, so sizes cannot tell whether the mask was turned along.",
    "Look at the pictures; if the mask is upside down, turn it or remove the flag.",
)
UNREADABLE_IMAGE = Kind(
    "unreadable-image",
    FAULT,
    "photos that cannot be read",
    "Training stops there, or half a picture is learnt as grey.",
    "Get the files again, or leave them out with their masks.",
)
UNREADABLE_MASK = Kind(
    "unreadable-mask",
    FAULT,
    "masks that cannot be read",
    "Training stops there.",
    "Export the masks again, or leave them out with their photos.",
)
REFUSED = Kind(
    "refused",
    FAULT,
    "samples that their reader refuses",
    "Training stops there.",
    "Mend what the message says, or leave the samples out.",
)
LAYOUT = Kind(
    "layout",
    FAULT,
    "the reader refuses the data set",
    "Nothing can be trained on before this is mended.",
    "Mend what the message says and check again.",
    of_samples=False,
)

# --- what masks hold -------------------------------------------------------------------------------------------------

LOSSY_MASK = Kind(
    "lossy-mask",
    FAULT,
    "masks that were compressed as JPEG",
    "Compression writes values between and around the true ones: labels that nobody drew.",
    "Export the masks again from their source, as PNG. Saving the JPEG as PNG does not bring labels back.",
)
TRANSPARENT_MASK = Kind(
    "transparent-mask",
    FAULT,
    "masks with transparent pixels",
    "Half transparent pixels are no labels, and what lies below fully transparent ones is chance.",
    "Export without alpha and without smooth edges.",
)
NOT_LABELS = Kind(
    "not-labels",
    FAULT,
    "masks of a kind that holds no labels",
    "Floating-point or 16-bit colour pixels are measurements or pictures, not class numbers.",
    "Save labels as 8- or 16-bit grey PNG, or as palette PNG.",
)
RGB_MASK = Kind(
    "rgb-mask",
    FAULT,
    "colour masks where class numbers are expected",
    "The class table knows numbers, not colours; turning colours into grey gives numbers that mean nothing.",
    "Save one number a pixel (grey or palette PNG), or give every class its colour as its value.",
)
INDEX_MASK = Kind(
    "index-mask",
    FAULT,
    "masks of numbers where colours are expected",
    "The class table knows colours. The numbers of a palette file are in whatever order the tool chose.",
    "Save these masks as colours, like the others.",
)
MIXED_MASKS = Kind(
    "mixed-masks",
    FAULT,
    "some masks hold colours, others numbers",
    "One rule cannot read both: palette indices taken for class numbers, or the reverse, are wrong labels.",
    "Export all masks the same way.",
    of_samples=False,
)
ANTIALIASED_MASK = Kind(
    "antialiased-mask",
    FAULT,
    "masks with smoothed edges",
    "Pixels along the edges have values between two labels, which stand for nothing.",
    "Draw or export without antialiasing; resize masks with nearest neighbour only.",
)
RESAMPLED_LABELS = Kind(
    "resampled-labels",
    FAULT,
    "class numbers mixed by resizing",
    "Between classes 2 and 6 a smoothing filter writes 4: a true class that is not there, around every object.",
    "Go back to the original masks and resize them with nearest neighbour.",
)
BINARY_MASK = Kind(
    "binary-mask",
    FAULT,
    "masks of 0 and 255 where classes are expected",
    "255 is no class here (and void in many data sets): these masks say where something is, not what.",
    "Export class numbers; or, if there is only one class, say so in the class table with value 255.",
)
OFF_BY_ONE = Kind(
    "off-by-one",
    FAULT,
    "all class numbers are shifted by one",
    "Every class is learnt under its neighbour's name.",
    "Shift the values in the class table (or export again), then look at the pictures.",
    of_samples=False,
)
UNKNOWN_VALUE = Kind(
    "unknown-value",
    FAULT,
    "pixel values that the class table does not know",
    "Nobody can say what those pixels are; training stops there.",
    "List the value in the class table (as a class, void or background), or mend the masks.",
)
UNUSED_CLASS = Kind(
    "unused-class",
    NOTE,
    "classes of the table that no mask shows",
    "A model cannot learn them; many of them may mean that the table belongs to other data.",
    "Nothing, if they are merely rare. Otherwise check the table.",
    of_samples=False,
)
INVERTED_MASK = Kind(
    "inverted-mask",
    FAULT,
    "foreground and background are exchanged",
    "What counts as foreground fills the borders around a hole where the object is: all but it would be learnt.",
    "Exchange the two values in the masks or in the class table; never invert predictions afterwards.",
    of_samples=False,
)
MIXED_POLARITY = Kind(
    "mixed-polarity",
    WARNING,
    "masks that look inverted, unlike the others",
    "Foreground fills their borders while it lies in the middle everywhere else.",
    "Look at the pictures; exchange foreground and background where they are wrong.",
)
WRONG_COLORS = Kind(
    "wrong-colors",
    FAULT,
    "the class table lists other colours than the masks have",
    "Not one pixel of those colours finds its class: the table belongs to another version of the data.",
    "Put the colours of the masks into the class table; the pictures show which is which.",
    of_samples=False,
)
WRONG_PALETTE = Kind(
    "wrong-palette",
    FAULT,
    "palette colours say another class than the values",
    "A drawing tool has renumbered the palette: the mask looks right on the screen and its numbers are wrong.",
    "Export with the fixed palette, or turn the colours back into the numbers of the class table.",
)
PALETTES_DIFFER = Kind(
    "palettes-differ",
    FAULT,
    "one number has different colours in different files",
    "Each file was given its own palette, so the same number means one thing here and another there.",
    "Turn colours into fixed class numbers for all files; numbers of these files cannot be used as they are.",
    of_samples=False,
)
MOSTLY_VOID = Kind(
    "mostly-void",
    WARNING,
    "masks that are nearly all void",
    "Void pixels teach nothing; often the void value is really a class.",
    "Check which value is void; label more, or leave the files out.",
)
EMPTY_MASK = Kind(
    "empty-mask",
    WARNING,
    "masks without any object",
    "Right for pictures that show nothing of interest; otherwise the model learns to overlook what is there.",
    "Look at the pictures; label what was forgotten.",
)
NO_LABELS = Kind(
    "no-labels",
    FAULT,
    "no mask has any object",
    "There is nothing to learn: the values of the masks are not what the reader takes for objects.",
    "Compare the values in the report with the class table.",
    of_samples=False,
)

# --- copies ----------------------------------------------------------------------------------------------------------

LEAKED_IMAGE = Kind(
    "leaked-image",
    FAULT,
    "the same photo in two splits",
    "Scores on pictures that were trained on say nothing.",
    "Keep each photo in one split (the quarantine list leaves out the training side).",
)
LEAKED_COPY = Kind(
    "leaked-near-duplicate",
    WARNING,
    "nearly the same photo in two splits",
    "Frames of one video, resized or re-saved copies: scores come out better than they are.",
    "Split by scene, patient or day rather than by picture.",
)
DUPLICATE_IMAGE = Kind(
    "duplicate-image",
    WARNING,
    "the same photo twice in one split",
    "It counts double; with two different masks it teaches contradictions.",
    "Keep one of them.",
)
CONTRADICTING_MASKS = Kind(
    "contradicting-masks",
    WARNING,
    "the same photo twice, with different masks",
    "At least one of the masks is wrong: often a mask was saved under another photo's name.",
    "Look at the pictures and keep the right one.",
)

# --- annotations -----------------------------------------------------------------------------------------------------

MISSING_FILE = Kind(
    "missing-file",
    FAULT,
    "the annotations name files that are not there",
    "Training stops there.",
    "Get the files, or take their entries out of the annotations.",
)
SEGMENT_NOT_LISTED = Kind(
    "segment-not-listed",
    FAULT,
    "segments in the PNG that the JSON does not list",
    "Their class is unknown.",
    "Add them to segments_info, or make them 0 (void) in the PNG. PNG and JSON may be of different versions.",
)
SEGMENT_WITHOUT_PIXELS = Kind(
    "segment-without-pixels",
    FAULT,
    "segments in the JSON that have no pixel in the PNG",
    "They count as objects that no model can find.",
    "Remove them from segments_info. PNG and JSON may be of different versions.",
)
DUPLICATE_SEGMENT = Kind(
    "duplicate-segment",
    FAULT,
    "a segment id is listed twice for one image",
    "One region would have two classes.",
    "Keep one entry for each id.",
)
WRONG_AREA = Kind(
    "wrong-area",
    FAULT,
    "areas in the JSON differ from the pixels in the PNG",
    "Panoptic quality is computed from these areas, and size classes (small, medium, large) too.",
    "Count the areas again from the PNG.",
)
WRONG_BOX = Kind(
    "wrong-box",
    FAULT,
    "boxes in the JSON differ from the pixels in the PNG",
    "Detectors are trained on these boxes.",
    "Compute the boxes again from the PNG: [x, y, width, height].",
)
UNKNOWN_CATEGORY = Kind(
    "unknown-category",
    FAULT,
    "annotations of a category that the file does not define",
    "Nobody can say what they are.",
    "Add the category, or mend category_id.",
)
POLYGON_OUTSIDE = Kind(
    "polygon-outside",
    FAULT,
    "polygons that leave the frame",
    "Their points belong to another size of the photo, or x and y are exchanged; what is outside is cut off.",
    "Export again at the photo's size.",
)
POLYGON_DEGENERATE = Kind(
    "polygon-degenerate",
    FAULT,
    "polygons with fewer than three different points, or an odd number of coordinates",
    "They enclose nothing: an object without a pixel.",
    "Remove them or draw them again.",
)

KINDS = {kind.name: kind for kind in list(globals().values()) if isinstance(kind, Kind)}
"""All kinds by name, in the order above."""
