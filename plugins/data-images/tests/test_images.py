import numpy as np
import onnx_ir as ir
import pytest
from onnx import parser
from PIL import Image

from pumice.data import open_dataset, open_splits
from pumice.errors import DataError
from pumice.testing import DatasetReaderContract
from pumice_data_images import ImageFolderReader

RNG = np.random.default_rng(0)


class TestImageFolder(DatasetReaderContract):
    strategy = ImageFolderReader

    def feeds(self):
        return np.random.default_rng(2).integers(0, 256, (5, 3, 8, 8)).astype(np.float32)

    def write(self, folder, feeds, labels):
        for number, feed in enumerate(feeds):
            write(folder / f"{number}.png", feed.transpose(1, 2, 0).astype(np.uint8))
        (folder / "labels.csv").write_text("".join(f"{number}.png,{label}\n" for number, label in enumerate(labels)))
        (folder / "pumice.toml").write_text("[inputs.x]\nscale = 1.0\n")
        return folder


def model_of(inputs):
    """A model of these inputs whose output is the first one."""
    kind, name = inputs.split(", ")[0].split()
    text = f'<ir_version: 10, opset_import: ["" : 21]> g ({inputs}) => ({kind} y) {{ y = Identity({name}) }}'
    return ir.from_proto(parser.parse_model(text))


def write(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


def noise(*shape):
    return RNG.integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def model():
    return model_of("float[N,3,4,6] image")


def first(folder, model):
    return next(open_dataset(folder, model).batches(1)).feeds


def test_class_folders_become_labels_in_order_of_name(tmp_path, model):
    for name in ("dog/a.png", "cat/b.png", "cat/a.png"):
        write(tmp_path / name, noise(4, 6, 3))
    dataset = open_dataset(tmp_path, model)
    assert [int(s.label[0]) for s in dataset] == [0, 0, 1]
    assert "labels number the class folders in order of name (0 = cat, 1 = dog)" in dataset.notes


def test_class_folders_that_are_numbers_are_the_labels(tmp_path, model):
    for name in ("10/a.png", "2/a.png"):
        write(tmp_path / name, noise(4, 6, 3))
    assert sorted(int(s.label[0]) for s in open_dataset(tmp_path, model)) == [2, 10]


def test_declared_classes_number_the_folders(tmp_path, model):
    for name in ("cat/a.png", "dog/a.png"):
        write(tmp_path / name, noise(4, 6, 3))
    (tmp_path / "pumice.toml").write_text('classes = ["dog", "bird", "cat"]\n')
    assert [int(s.label[0]) for s in open_dataset(tmp_path, model)] == [2, 0]


def test_a_class_that_is_not_declared_is_refused(tmp_path, model):
    write(tmp_path / "cats/a.png", noise(4, 6, 3))
    (tmp_path / "pumice.toml").write_text('classes = ["dog", "cat"]\n')
    with pytest.raises(DataError, match="lists no class 'cats'; did you mean 'cat'"):
        open_dataset(tmp_path, model)


def test_a_flat_folder_has_no_labels(tmp_path, model):
    write(tmp_path / "a.png", noise(4, 6, 3))
    assert not open_dataset(tmp_path, model).labelled


def test_a_flat_folder_may_have_a_label_file(tmp_path, model):
    for name in "ab":
        write(tmp_path / f"{name}.png", noise(4, 6, 3))
    (tmp_path / "labels.csv").write_text("a.png,4\nb.png,5\n")
    assert next(open_dataset(tmp_path, model).batches()).labels.tolist() == [4, 5]


def test_the_default_scales_to_one_and_says_so(tmp_path, model):
    pixels = write(tmp_path / "a.png", noise(4, 6, 3))
    dataset = open_dataset(tmp_path, model)
    np.testing.assert_allclose(next(dataset.batches()).feeds["image"][0], pixels.transpose(2, 0, 1) / 255, rtol=1e-6)
    assert any("no pumice.toml" in note and "NCHW" in note for note in dataset.notes)


def test_the_default_follows_the_input(tmp_path):
    pixels = write(tmp_path / "a.png", noise(8, 12, 3))
    assert first(tmp_path, model_of("float[N,4,6,3] image"))["image"].shape == (1, 4, 6, 3)
    assert first(tmp_path, model_of("float[N,1,4,6] image"))["image"].shape == (1, 1, 4, 6)
    bytes_ = first(tmp_path, model_of("uint8[N,3,H,W] image"))["image"]
    np.testing.assert_array_equal(bytes_[0], pixels.transpose(2, 0, 1))


def test_everything_declared_is_done(tmp_path):
    pixels = write(tmp_path / "a.png", noise(10, 14, 3))
    (tmp_path / "pumice.toml").write_text(
        "[inputs.image]\ncrop = [4, 6]\nchannels = 'BGR'\nlayout = 'NHWC'\nscale = 1.0\n"
        "mean = [1.0, 2.0, 3.0]\nstd = [2.0, 4.0, 8.0]\n"
    )
    expected = (pixels[3:7, 4:10, ::-1].astype(np.float32) - [1, 2, 3]) / [2, 4, 8]
    np.testing.assert_allclose(first(tmp_path, model_of("float[N,H,W,3] image"))["image"][0], expected, rtol=1e-6)


def test_resizing_by_one_number_sets_the_shorter_side(tmp_path):
    write(tmp_path / "a.png", noise(20, 40, 3))
    (tmp_path / "pumice.toml").write_text("[inputs.image]\nresize = 10\n")
    assert first(tmp_path, model_of("float[N,3,H,W] image"))["image"].shape == (1, 3, 10, 20)


def test_other_inputs_may_be_constants(tmp_path):
    write(tmp_path / "a.png", noise(4, 6, 3))
    (tmp_path / "pumice.toml").write_text("[inputs.size]\nconstant = [[4.0, 6.0]]\n")
    feeds = first(tmp_path, model_of("float[N,3,4,6] image, float[N,2] size"))
    assert feeds["size"].tolist() == [[4.0, 6.0]]


def test_a_folder_may_hold_folders_of_images_for_both_parts(tmp_path, model):
    write(tmp_path / "calibration/a.png", noise(4, 6, 3))
    write(tmp_path / "test/cat/a.png", noise(4, 6, 3))
    (tmp_path / "pumice.toml").write_text("[inputs.image]\nscale = 1.0\n")
    splits = open_splits(tmp_path, model)
    assert (splits.calibration.labelled, splits.test.labelled) == (False, True)
    assert next(splits.calibration.batches()).feeds["image"].max() > 1


def test_a_folder_of_parts_is_left_to_core_which_opens_its_test_part(tmp_path, model):
    for name in ("calibration/a.png", "test/b.png", "test/c.png"):
        write(tmp_path / name, noise(4, 6, 3))
    dataset = open_dataset(tmp_path, model)
    assert (len(dataset), dataset.labelled) == (2, False)


def test_an_image_that_cannot_be_read_is_named(tmp_path, model):
    write(tmp_path / "a.png", noise(4, 6, 3))
    (tmp_path / "b.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"image '.*b\.png' cannot be read"):
        list(open_dataset(tmp_path, model).batches())


@pytest.mark.parametrize(
    ("toml", "words"),
    [
        ("[inputs.imge]\nscale = 1.0", "no input 'imge'; did you mean 'image'"),
        ("[inputs.image]\nscal = 1.0", "no key 'scal'; did you mean 'scale'"),
        ("[inputs.image]\nlayout = 'HWC'", "does not fit"),
        ("[inputs.image]\nresize = 'big'", "does not fit"),
        ("[inputs.image]\nchannels = 'L'", "takes 3 channels"),
        ("[inputs.image\n", "cannot be read as TOML"),
        ("inputs.image = 3", r"as a table \[inputs.image\]"),
        ("[inputs.image]\nresize = [5, 5]", r"\[1, 3, 5, 5\]"),
    ],
)
def test_a_declaration_that_makes_no_sense_is_told(tmp_path, model, toml, words):
    write(tmp_path / "a.png", noise(4, 6, 3))
    (tmp_path / "pumice.toml").write_text(toml)
    with pytest.raises(DataError, match=words):
        open_dataset(tmp_path, model)


def test_a_model_that_takes_no_image_is_told(tmp_path):
    write(tmp_path / "a.png", noise(4, 6, 3))
    with pytest.raises(DataError, match="is no image"):
        open_dataset(tmp_path, model_of("float[N,7] x"))
    with pytest.raises(DataError, match="not clear which of the inputs"):
        open_dataset(tmp_path, model_of("float[N,3,4,6] a, float[N,3,4,6] b"))


def test_photographs_are_turned_upright(tmp_path):
    image = Image.fromarray(noise(4, 6, 3))
    exif = image.getexif()
    exif[0x0112] = 6  # turned by a quarter
    image.save(tmp_path / "a.png", exif=exif)
    assert first(tmp_path, model_of("float[N,3,H,W] image"))["image"].shape == (1, 3, 6, 4)
