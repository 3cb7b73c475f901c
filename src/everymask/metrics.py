"""How well masks agree with the truth: one class a family of metrics, all used in the same way.

``update(...)`` takes one image and returns that image's own numbers, ``compute()`` gives the numbers over all images,
``merge(other)`` adds what another object has seen, ``state()`` and ``load_state()`` carry it between processes as plain
arrays. Datas are arrays or tensors; counting is int64 and float64. What nothing was seen for is nan, and means leave
nan out. Wrong shapes and types raise `UsageError`, wrong values `DataError`. Shapes: the legend of `everymask.types`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import hotcoco
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from .errors import DataError, UsageError

Array = NDArray[Any]
Data = Any  # array or tensor
Shape = Any  # tuple of lengths, None for any
Scores = dict[str, Any]

VOID = -1
UNKNOWN = 128  # in a trimap, between 0 background and 255 foreground


class Metric:
    """Named arrays that grow or add up. Their merging is exact, and so are means: they go through `math.fsum`, which
    rounds once and so does not depend on the order of its terms.

    Args:
        settings: what two objects must have in common to be merged.
        empty: the arrays before any image. One of length 0 is appended to, any other is added to.
    """

    def __init__(self, settings: dict[str, Data], **empty: Array) -> None:
        self._settings = {name: np.asarray(value) for name, value in settings.items()}
        self._empty = empty
        self._seen = {name: [array] for name, array in empty.items()}  # chunks: appending stays cheap

    def compute(self) -> Scores:
        """The numbers over all images; the class says which."""
        return self._scores(self.state())

    def state(self) -> dict[str, Array]:
        """A copy of all that was seen, and the settings."""
        return {n: a.copy() for n, a in self._settings.items()} | {n: np.concatenate(c) for n, c in self._seen.items()}

    def load_state(self, state: Mapping[str, Data]) -> None:
        """Replace all that was seen by the `state` of an object of the same class and settings."""
        arrays = self._fitting(state)
        self._seen = {name: [array] for name, array in self._empty.items()}
        self._add(arrays)

    def merge(self, other: Metric) -> None:
        """Add all that `other` has seen; `UsageError` if it is of another class or has other settings."""
        if type(other) is not type(self):
            why = f"{type(other).__name__} into {type(self).__name__}"
            raise UsageError("only metrics of the same class can be merged", where="merge", why=why)
        self._add(self._fitting(other.state()))

    def _scores(self, seen: Mapping[str, Array]) -> Scores:
        raise NotImplementedError

    def _add(self, arrays: dict[str, Array]) -> None:
        for name, array in arrays.items():
            chunks = self._seen[name]
            if self._empty[name].size:
                chunks[0] = chunks[0] + array
            else:
                chunks.append(array)

    def _add_image(self, arrays: dict[str, Array]) -> Scores:
        """Add what was seen in one image; returns its own numbers, without those of each class."""
        self._add(arrays)
        return {key: value for key, value in self._scores(arrays).items() if key != "per_class"}

    def _fitting(self, state: Mapping[str, Data]) -> dict[str, Array]:
        """The arrays of a state, after a check that its names, settings and shapes are ours."""
        given = {name: np.asarray(value) for name, value in state.items()}
        same = given.keys() == self._settings.keys() | self._empty.keys()
        same = same and all(np.array_equal(array, given[name]) for name, array in self._settings.items())
        for name, array in self._empty.items() if same else ():
            grows = int(array.size == 0)  # then its length may differ
            same &= given[name].ndim == array.ndim and given[name].shape[grows:] == array.shape[grows:]
        if not same:
            fix = "Build both with the same arguments."
            raise UsageError("not a state of this class with the same settings", where=type(self).__name__, fix=fix)
        return {name: given[name].astype(array.dtype) for name, array in self._empty.items()}


class SemanticIoU(Metric):
    """IoU = TP / (TP + FP + FN) and relatives for pixel classes: Everingham et al., IJCV 2010, section 4.

    Kept is one confusion matrix [K + 1, K + 1], truth by prediction; class K is the background, pixels of no class.
    Gives `miou`, `dice` (means over the classes that occur, without background), `miou_with_background`,
    `foreground_iou`, `foreground_dice` (all classes as one), `pixel_accuracy`, and `per_class`: name -> `iou`, `dice`,
    `precision`, `recall`.
    """

    def __init__(self, num_classes: int, names: Sequence[str] | None = None) -> None:
        self.names = _class_names(num_classes, names)
        super().__init__({}, confusion=np.zeros((num_classes + 1, num_classes + 1), np.int64))

    def update(self, pred: Data, true: Data) -> Scores:
        """Count one image: class indices [H, W], K for background; in `true` also -1, void, where `pred` is ignored."""
        size = len(self.names) + 1
        true = _array("true", true, (None, None), "iu", VOID, size - 1)
        known = true != VOID
        pred = _array("pred", _array("pred", pred, true.shape, "iu")[known], (None,), "iu", 0, size - 1)
        confusion = np.bincount(true[known] * size + pred, minlength=size * size)
        return self._add_image({"confusion": confusion.reshape(size, size)})

    def _scores(self, seen: Mapping[str, Array]) -> Scores:
        confusion = seen["confusion"]
        both, true, pred = np.diag(confusion), confusion.sum(1), confusion.sum(0)
        iou, dice = _ratio(both, true + pred - both), _ratio(2 * both, true + pred)
        fg_both, fg_total = confusion[:-1, :-1].sum(), true[:-1].sum() + pred[:-1].sum()
        columns = {"iou": iou, "dice": dice, "precision": _ratio(both, pred), "recall": _ratio(both, true)}
        return {
            "miou": _mean(iou[:-1]),
            "miou_with_background": _mean(iou),
            "dice": _mean(dice[:-1]),
            "foreground_iou": _ratio(fg_both, fg_total - fg_both).item(),
            "foreground_dice": _ratio(2 * fg_both, fg_total).item(),
            "pixel_accuracy": _ratio(both.sum(), true.sum()).item(),
            "per_class": _per_class(self.names, columns),
        }


class BoundaryF(Metric):
    """F measure of the boundary of a binary mask, as in DAVIS: Perazzi et al., CVPR 2016, section 4.

    A boundary pixel is right if the other mask has one at most `tolerance` image diagonals away, rounded up to whole
    pixels (0.0075: Csurka et al., BMVC 2013). Gives the means over images of `boundary_f`, `boundary_precision` and
    `boundary_recall`: 1 for an image with two empty boundaries, F = 0 for one, nan where nothing can be measured: no
    valid pixel, or void wherever true foreground and background meet, as with trimaps whose border is void.
    """

    def __init__(self, tolerance: float = 0.0075) -> None:
        if not 0 < tolerance < 1:
            raise UsageError("tolerance must be a share of the image diagonal", where="BoundaryF", why=f"{tolerance}")
        self.tolerance = tolerance
        super().__init__({"tolerance": tolerance}, scores=np.zeros((0, 3)))

    def update(self, pred: Data, true: Data, valid: Data = None) -> Scores:
        """Score the foreground [H, W] of one image, bool or 0 / 1; `valid` [H, W] is False at void."""
        true = _flags("true", true, (None, None))
        pred, valid = _flags("pred", pred, true.shape), _flags("valid", valid, true.shape, default=True)
        measurable = valid.any() and not _hidden_boundary(true, valid)
        pred, true = _boundary(pred, valid), _boundary(true, valid)
        radius = math.ceil(self.tolerance * math.hypot(*true.shape))
        precision, recall = _share_near(pred, true, radius), _share_near(true, pred, radius)
        f = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
        return self._add_image({"scores": np.array([[f, precision, recall] if measurable else [math.nan] * 3])})

    def _scores(self, seen: Mapping[str, Array]) -> Scores:
        keys = "boundary_f", "boundary_precision", "boundary_recall"
        return dict(zip(keys, map(_mean, seen["scores"].T), strict=True))


def _boundary(mask: Array, valid: Array) -> Array:
    """[H, W] bool: valid pixels that differ from a valid neighbour to the right, below, or below right."""
    boundary = np.zeros_like(mask)
    for y, x in ((0, 1), (1, 0), (1, 1)):
        here, there = np.s_[: len(mask) - y, : mask.shape[1] - x], np.s_[y:, x:]
        boundary[here] |= (mask[here] != mask[there]) & valid[here] & valid[there]
    return boundary


def _hidden_boundary(mask: Array, valid: Array) -> bool:
    """Whether there is foreground and background, but void wherever they meet."""
    both = bool((mask & valid).any() and (~mask & valid).any())
    return both and not _boundary(mask, valid).any()


def _share_near(boundary: Array, other: Array, radius: int) -> float:
    """Share of the boundary's pixels that are at most `radius` pixels from a pixel of the other boundary."""
    if not boundary.any() or not other.any():  # a distance map needs something to measure from
        return float(not boundary.any())
    return float((ndimage.distance_transform_edt(~other)[boundary] <= radius).mean())


class MattingErrors(Metric):
    """Errors of an alpha matte: Rhemann et al., CVPR 2009, with the constants of the MATLAB code of Xu et al., "Deep
    Image Matting", CVPR 2017, which has no weight lambda in Conn.

    Unlike that code, mattes are not stretched to 0..1 for Grad; this matters only where one lacks pure 0 or pure 1.
    P3M's Python code divides by 10 instead of normalising Grad's filters, which gives values some 4 % higher.
    Gives means over images of the sums `sad`, `grad`, `conn` (in thousands) and the means over pixels `mse`, `mad`,
    and the same inside the trimap's unknown band as `*_unknown`, over the images that have one.
    """

    def __init__(self) -> None:
        super().__init__({}, errors=np.zeros((0, 10)))

    def update(self, alpha_pred: Data, alpha_true: Data, trimap: Data = None) -> Scores:
        """Score one image: mattes [H, W], float 0..1 or uint8 0..255; `trimap` [H, W] is 128 where unknown."""
        true = _alpha("alpha_true", alpha_true, (None, None))
        pred = _alpha("alpha_pred", alpha_pred, true.shape)
        trimap = np.zeros(true.shape, int) if trimap is None else trimap
        unknown = _array("trimap", trimap, true.shape, "iu", 0, 255) == UNKNOWN
        level = _connected_level(pred, true)
        grad = (_gradient_amplitude(pred) - _gradient_amplitude(true)) ** 2
        maps = np.abs(pred - true), grad, np.abs(_connectivity(pred, level) - _connectivity(true, level))
        errors = [_matting_errors(*maps), _matting_errors(*(values[unknown] for values in maps))]
        return self._add_image({"errors": np.concatenate(errors)[None]})

    def _scores(self, seen: Mapping[str, Array]) -> Scores:
        keys = [f"{key}{region}" for region in ("", "_unknown") for key in ("sad", "mse", "mad", "grad", "conn")]
        return dict(zip(keys, map(_mean, seen["errors"].T), strict=True))


def _matting_errors(absolute: Array, grad: Array, conn: Array) -> Array:
    """[5] SAD, MSE, MAD, Grad and Conn from the errors of the pixels."""
    sums = np.array([absolute.sum(), (absolute**2).sum(), absolute.sum(), grad.sum(), conn.sum()])
    return sums / [1000, absolute.size, absolute.size, 1000, 1000] if absolute.size else np.full(5, np.nan)


def _gradient_amplitude(alpha: Array, sigma: float = 1.4) -> Array:
    """[H, W] length of the Gaussian-derivative gradient; the 2-D filters have unit L2 norm, edges are repeated."""
    x = np.arange(-4, 5)  # ends where the Gaussian falls below 0.01, as in the MATLAB code
    smooth = np.exp(-(x**2) / (2 * sigma**2))
    # The filters are outer products, whose norm is the product of the norms.
    kernels = x * smooth / np.linalg.norm(x * smooth), smooth / np.linalg.norm(smooth)
    along_y, along_x = alpha, alpha
    for axis, kernel in enumerate(kernels):
        along_y = ndimage.correlate1d(along_y, kernel, axis, mode="nearest")
        along_x = ndimage.correlate1d(along_x, kernel, 1 - axis, mode="nearest")
    return np.hypot(along_x, along_y)


def _connected_level(pred: Array, true: Array) -> Array:
    """l of Rhemann et al.: the threshold, in steps of 0.1, up to which a pixel is in the largest 4-connected region."""
    level, inside = np.zeros_like(true), np.ones_like(true, bool)
    for threshold in np.arange(1, 11) / 10:
        regions, _ = ndimage.label((pred >= threshold) & (true >= threshold))
        inside &= regions == 1 + np.bincount(regions.ravel(), minlength=2)[1:].argmax()
        level[inside] = threshold
    return level


def _connectivity(alpha: Array, level: Array, theta: float = 0.15) -> Array:
    """phi of Rhemann et al.: 1 - d where the matte exceeds its connected level by a d of at least theta, else 1."""
    return 1 - (alpha - level) * (alpha - level >= theta)


class PanopticQuality(Metric):
    """PQ = SQ x RQ of each class: Kirillov et al., "Panoptic Segmentation", CVPR 2019, section 4.

    Pairs of one class match above an IoU of 1/2, void left out. An unmatched prediction that is more than half void or
    crowd of its class is no false positive; crowd is never matched nor missed. Background is known: no prediction fits.
    Gives `pq`, `sq`, `rq` (means over the classes that occur), the same as `*_things` and `*_stuff`, and `per_class`:
    name -> `pq`, `sq`, `rq` and the counts `tp`, `fp`, `fn`.
    """

    def __init__(self, num_classes: int, is_thing: Data, names: Sequence[str] | None = None) -> None:
        self.names = _class_names(num_classes, names)
        self.is_thing = _flags("is_thing", is_thing, (num_classes,))
        counts = {name: np.zeros(num_classes, np.int64) for name in ("tp", "fp", "fn")}
        matches = {"match_class": np.zeros(0, np.int64), "match_iou": np.zeros(0)}
        super().__init__({"is_thing": self.is_thing}, **counts, **matches)

    def update(
        self, pred_ids: Data, pred_classes: Data, true_ids: Data, true_classes: Data, true_crowd: Data = None
    ) -> Scores:
        """Match the segments of one image. Rows without pixels count for nothing.

        Args:
            pred_ids: [H, W] 0 nothing, 1..n rows of `pred_classes` [n], class indices.
            true_ids: [H, W] -1 void, 0 background, 1..m rows of `true_classes` [m], class indices.
            true_crowd: [m] bool; None for no crowds.
        """
        classes = len(self.names)
        pred_classes = _array("pred_classes", pred_classes, (None,), "iu", 0, classes - 1)
        true_classes = _array("true_classes", true_classes, (None,), "iu", 0, classes - 1)
        crowd = _flags("true_crowd", true_crowd, true_classes.shape)
        true_ids = _array("true_ids", true_ids, (None, None), "iu", VOID, len(true_classes))
        pred_ids = _array("pred_ids", pred_ids, true_ids.shape, "iu", 0, len(pred_classes))
        match, iou, wrong, missed = _match_segments(pred_ids, pred_classes, true_ids, true_classes, crowd)
        lists = {"tp": match, "fp": wrong, "fn": missed}
        counts = {name: np.bincount(found, minlength=classes) for name, found in lists.items()}
        return self._add_image(counts | {"match_class": match, "match_iou": iou})

    def _scores(self, seen: Mapping[str, Array]) -> Scores:
        iou = np.array([math.fsum(seen["match_iou"][seen["match_class"] == k]) for k in range(len(self.names))])
        counts = {name: seen[name] for name in ("tp", "fp", "fn")}
        total = counts["tp"] + counts["fp"] / 2 + counts["fn"] / 2
        # A class that occurs but is never matched has SQ 0, as in the authors' code.
        sq = np.where(total > 0, iou / np.maximum(counts["tp"], 1), np.nan)
        columns = {"pq": _ratio(iou, total), "sq": sq, "rq": _ratio(counts["tp"], total)}
        groups = {"": np.ones_like(self.is_thing), "_things": self.is_thing, "_stuff": ~self.is_thing}
        means = {key + name: _mean(columns[key][group]) for name, group in groups.items() for key in columns}
        return means | {"per_class": _per_class(self.names, columns | counts)}


def _match_segments(
    pred_ids: Array, pred_classes: Array, true_ids: Array, true_classes: Array, crowd: Array
) -> tuple[Array, Array, Array, Array]:
    """Class and IoU of the matches, class of the false positives, class of the false negatives of one image."""
    width = len(pred_classes) + 1
    codes, shared = np.unique((true_ids - VOID) * width + pred_ids, return_counts=True)
    t, p = codes // width + VOID, codes % width
    pred_area, true_area = np.bincount(p, shared, width), np.bincount(t - VOID, shared, len(true_classes) + 2)[1:]
    pred_void = np.bincount(p[t == VOID], shared[t == VOID], width)

    # From here on only pairs of segments of one class, of which at most one can exceed an IoU of 1/2.
    pair = (t > 0) & (p > 0)
    pair[pair] = true_classes[t[pair] - 1] == pred_classes[p[pair] - 1]
    t, p, shared = t[pair], p[pair], shared[pair]
    in_crowd = crowd[t - 1]
    union = true_area[t] + pred_area[p] - shared - pred_void[p]
    match = ~in_crowd & (2 * shared > union)

    excused = pred_void + np.bincount(p[in_crowd], shared[in_crowd], width)
    wrong, missed = ((pred_area > 0) & (2 * excused <= pred_area))[1:], (true_area[1:] > 0) & ~crowd
    wrong[p[match] - 1] = missed[t[match] - 1] = False
    return true_classes[t[match] - 1], shared[match] / union[match], pred_classes[wrong], true_classes[missed]


class MaskAP(Metric):
    """COCO average precision of scored masks (Lin et al., ECCV 2014), computed by `hotcoco` from run-length codes.

    As in COCO, 100 predictions an image and class count, and equal scores rank in the order of the images. COCO knows
    no void: give it as crowd. Gives `ap` (IoU 0.50:0.05:0.95), `ap50`, `ap75`, `ap_small` (up to 32^2 pixels),
    `ap_medium`, `ap_large` (from 96^2), means over the classes that have true segments, and `per_class`: name -> `ap`.
    """

    def __init__(self, num_classes: int, names: Sequence[str] | None = None) -> None:
        self.names = _class_names(num_classes, names)
        # One line of JSON an image, in COCO's own terms but without image and annotation ids, so that merging is easy.
        super().__init__({"num_classes": np.int64(num_classes)}, lines=np.zeros(0, np.uint8))

    def update(
        self,
        pred_masks: Data,
        scores: Data,
        classes: Data,
        true_masks: Data,
        true_classes: Data,
        true_crowd: Data = None,
    ) -> Scores:
        """Take in one image; returns nothing, because AP ranks the predictions of all images together.

        Args:
            pred_masks, scores, classes: [n, H, W] bool, [n] confidence, [n] class index.
            true_masks, true_classes, true_crowd: [m, H, W] bool, [m] class index, [m] bool; n and m may be 0.
        """
        pred = _flags("pred_masks", pred_masks, (None, None, None))
        true = _flags("true_masks", true_masks, (None, *pred.shape[1:]))
        labels = _array("classes", classes, pred.shape[:1], "iu", 0, len(self.names) - 1)
        true_labels = _array("true_classes", true_classes, true.shape[:1], "iu", 0, len(self.names) - 1)
        crowd = _flags("true_crowd", true_crowd, true.shape[:1]).astype(int)
        predictions = _coco_rows(pred, labels, score=_array("scores", scores, pred.shape[:1], "f"))
        size = dict(zip(("height", "width"), pred.shape[1:], strict=True))
        annotations = _coco_rows(true, true_labels, iscrowd=crowd)
        line = json.dumps(size | {"predictions": predictions, "annotations": annotations})
        self._add({"lines": np.frombuffer(line.encode() + b"\n", np.uint8)})
        return {}

    def _scores(self, seen: Mapping[str, Array]) -> Scores:
        images = [json.loads(line) | {"id": i} for i, line in enumerate(seen["lines"].tobytes().splitlines(), 1)]
        rows: dict[str, list[dict]] = {"annotations": [], "predictions": []}
        for image in images:
            for key, table in rows.items():
                first = len(table) + 1  # not 0, which COCO tools read as "no match"
                table += [row | {"id": i, "image_id": image["id"]} for i, row in enumerate(image.pop(key), first)]
        categories = [{"id": k + 1, "name": name} for k, name in enumerate(self.names)]
        true = hotcoco.COCO({"images": images, "categories": categories, "annotations": rows["annotations"]})
        evaluation = hotcoco.COCOeval(true, true.load_res(rows["predictions"]), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        # [10 IoU thresholds, recall, K, area range] at 100 detections; -1 for what no truth was seen for.
        precision = (evaluation.eval or {})["precision"][..., -1]
        precision = np.where(precision < 0, np.nan, precision)
        parts = {"ap": precision[..., 0], "ap50": precision[0, ..., 0], "ap75": precision[5, ..., 0]}
        parts |= {f"ap_{area}": precision[..., i] for i, area in enumerate(("small", "medium", "large"), 1)}
        columns = {"ap": np.array([_mean(one) for one in parts["ap"].swapaxes(0, 2)])}
        return {key: _mean(part) for key, part in parts.items()} | {"per_class": _per_class(self.names, columns)}


def _coco_rows(masks: Array, classes: Array, **column: Array) -> list[dict[str, Any]]:
    """One COCO annotation or result for each mask; `column` is one more field of it."""
    ((key, values),) = column.items()
    rows = []
    for mask, k, value in zip(masks, classes.tolist(), values.tolist(), strict=True):
        code = hotcoco.mask.encode(mask)
        code["counts"] = code["counts"].decode("ascii")
        rows.append({"category_id": k + 1, "segmentation": code, "area": int(mask.sum()), key: value})
    return rows


def _ratio(part: Data, whole: Data) -> Array:
    """part / whole, nan where whole is 0."""
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=np.greater(whole, 0))


def _mean(values: Array) -> float:
    """Mean of the values that are not nan; nan if there are none."""
    values = values[~np.isnan(values)]
    return math.fsum(values) / len(values) if len(values) else math.nan


def _per_class(names: Sequence[str], columns: dict[str, Array]) -> dict[str, dict[str, float]]:
    return {name: {key: column[k].item() for key, column in columns.items()} for k, name in enumerate(names)}


def _class_names(num_classes: int, names: Sequence[str] | None) -> tuple[str, ...]:
    names = tuple(map(str, range(num_classes)) if names is None else names)
    if num_classes < 1 or len(names) != num_classes or len(set(names)) != num_classes:
        why = f"{num_classes} classes, {len(set(names))} different names"
        raise UsageError("a metric needs at least one class and one name for each", where="names", why=why)
    return names


def _array(name: str, values: Data, shape: Shape, kinds: str, low: float = -math.inf, high: float = math.inf) -> Array:
    """The values as int64, or float64 if `kinds` has "f", after a check of shape, dtype kind and range.

    A `shape` has None for any length. The dtype of an empty array does not matter.
    """
    array = np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)
    if array.ndim != len(shape) or any(want not in (None, have) for have, want in zip(array.shape, shape, strict=True)):
        wanted = ", ".join("any" if length is None else str(length) for length in shape)
        raise UsageError("an array of the wrong shape", where=name, why=f"{list(array.shape)}, needed [{wanted}]")
    if array.dtype.kind not in kinds and array.size:
        wanted = " or ".join({"b": "bool", "i": "int", "u": "uint", "f": "float"}[kind] for kind in kinds)
        raise UsageError("an array of the wrong type", where=name, why=f"{array.dtype}, needed {wanted}")
    if array.dtype == bool and "b" in kinds:
        return array  # in range, and a stack of masks is too large to be widened
    array = array.astype(np.float64 if "f" in kinds else np.int64)
    if (bad := np.unique(array[~(np.isfinite(array) & (array >= low) & (array <= high))])).size:
        fix = "Void is -1, in the truth alone: map other codes, such as 255, first." if low == VOID else ""
        raise DataError(f"values that are not in {low}..{high}", where=name, why=f"{bad[:5].tolist()}", fix=fix)
    return array


def _flags(name: str, values: Data, shape: Shape, default: bool = False) -> Array:
    """The values, bool or 0 / 1, as bool; None stands for `default` everywhere."""
    return np.full(shape, default) if values is None else _array(name, values, shape, "biu", 0, 1).astype(bool)


def _alpha(name: str, values: Data, shape: Shape) -> Array:
    """[H, W] float64 0..1 from float 0..1 or uint8 0..255."""
    high = 255 if str(getattr(values, "dtype", "")).endswith("uint8") else 1
    return _array(name, values, shape, "fu", 0, high) / high
