"""Frame k is the k-th frame that the decoder puts out, however a file was cut or edited."""

import av
import numpy as np
import pytest

from tests.data import cut_videos
from tests.data.cut_videos import burnt, sequential
from tests.data.readers.installed import decoders
from vidcsl.data.prepare.scan import examine
from vidcsl.data.readers import Source, open_reader
from vidcsl.data.readers.frame_index import header_index, packet_index
from vidcsl.data.readers.pyav import open_stream
from vidcsl.errors import VideoError

backends = pytest.mark.parametrize("backend", decoders())
# decord looks for the first frame by a jump, which ends nowhere in this file.
NOT_DECORD = "vp9.mp4 cut without its keyframe"


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    return cut_videos.cut_family(tmp_path_factory.mktemp("family"))


def subsets(count, rng):
    """One frame, neighbours, some in any order and twice."""
    begin = int(rng.integers(0, count - 4))
    yield from ([count - 1], [begin], list(range(begin, begin + 4)))
    yield rng.integers(0, count, 5).tolist()


@backends
@pytest.mark.parametrize("codec", cut_videos.CODECS)
def test_any_frames_in_any_order_are_those_of_a_sequential_decode(family, codec, backend):
    files = {name: path for name, path in family.items() if _codec(name) == codec}
    assert len(files) >= 6
    for name, path in files.items():
        if backend == "decord" and name == NOT_DECORD:
            continue
        expected, rng = sequential(path), np.random.default_rng(0)
        last = len(expected) - 1
        with open_reader(path, backend=backend) as reader:
            assert reader.num_frames == len(expected), name
            whole = reader.read(range(len(expected)))
            assert burnt(whole) == expected, name
            for wanted in subsets(len(expected), rng):
                np.testing.assert_array_equal(
                    reader.read(wanted), whole[wanted], str((name, wanted))
                )
            with pytest.raises(VideoError, match=f"no frame {len(expected)}"):
                reader.read([len(expected)])
        memory = Source("shard.tar/clip", path.read_bytes())
        with open_reader(memory, backend=backend) as reader:
            wanted = [last, last // 2]  # and no frame was read before
            assert burnt(reader.read(wanted)) == [expected[k] for k in wanted], name


def _codec(name):
    return name.partition(".")[0].replace("_", " ")


def test_the_family_holds_what_it_is_for(family):
    """Files of which a decoder puts out fewer frames than there are packets, for each reason."""
    few = {name for name, path in family.items() if len(sequential(path)) < _packets(path)}
    for codec in ("h264", "h264_open", "hevc", "mpeg4", "mpeg4_b", "vp9"):
        assert f"{codec}.mp4 cut between keyframes" in few
        for way in ("start", "end", "both"):
            assert f"{codec}.mp4 {way} edited" in few
    assert "hevc.mkv cut without its keyframe" in few
    assert "mpeg4_b.mkv cut between keyframes" in few  # pictures ahead of the first keyframe
    assert not any("whole" in name for name in few)


def _packets(path):
    with av.open(str(path)) as container:
        return sum(packet.size > 0 for packet in container.demux(video=0))


def test_cut_files_are_sound(family):
    for name, path in family.items():
        assert examine(path, "auto")["frames"] == len(sequential(path)), name


def test_cut_files_are_read_from_the_keyframe_before(family):
    """Not from the start: in a long file that would take long."""
    for name in ("h264.mp4 cut between keyframes", "h264.mp4 both edited", "vp9.mp4 end edited"):
        with open_reader(family[name]) as reader:
            reader.read([reader.num_frames - 1])
            assert reader.in_time_order  # no longer, once a seek was in doubt
        source = Source.of(family[name])
        stream = open_stream(source)
        with stream.container:
            index = header_index(stream, source) or packet_index(stream)
        assert len(index.starts) > 1
