"""
Penstock's native core: direct reads, the neuron window, kernels and the decoder.
"""

from collections.abc import Sequence
from typing import Annotated, Final

import numpy
import numpy.typing
from numpy.typing import NDArray


def kernels_available() -> list[str]:
    """
    Names of the kernel sets that this processor runs; "scalar" is always one of them.
    """

def kernels_name() -> str:
    """Name of the kernel set in use."""

def kernels_select(name: str) -> None:
    """
    Use the named kernel set from now on, in the whole process; "auto" is the best one. Raises
    ValueError for a set that cannot run here. For tests: call it while nothing is computing.
    """

def dot(type: int, row: bytes | numpy.typing.NDArray[numpy.uint8], x: numpy.typing.NDArray[numpy.float32]) -> float:
    """
    Dot product of one weight row, as stored, with x. In the block formats x is quantized to int8
    blocks first, as in inference. type is ggml's number: 0 F32, 1 F16, 2 Q4_0, 8 Q8_0.
    """

def axpy(type: int, row: bytes | numpy.typing.NDArray[numpy.uint8], h: float, y: numpy.typing.NDArray[numpy.float32], begin: int, end: int) -> None:
    """
    y[begin:end] += h * row[begin:end], in place; the row has as many elements as y.
    """

def crc32c(data: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu', writable=False)], seed: int = 0) -> int:
    """CRC-32C of a uint8 array; `seed` continues an earlier one."""

def crc32c_of_file(path: str, offset: int, bytes: int) -> int:
    """CRC-32C of a range of a file, read past the page cache."""

def measure_reads(path: str, block: int, depth: int, backend: str, seconds: float, sequential: bool, direct: bool = True) -> tuple[float, float]:
    """
    (bytes a second, reads a second) of reads of `block` bytes, `depth` in flight.
    """

def measure_memory(threads: int, bytes: int, rounds: int = 3) -> float:
    """Bytes a second that `threads` threads read from memory."""

def direct_alignment(path: str) -> int:
    """
    Alignment that direct reads of this file need, or 0 where they are refused.
    """

class NeuronWindow:
    """Which neuron's bundle sits in which slot of a layer's window memory."""

    def __init__(self, neurons: int, capacity: int, window_tokens: int = 0) -> None: ...

    KEEP: Final[float] = ...
    """What a token leaves of a neuron's heat, its count of activity."""

    def update(self, active: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> None:
        """One token's active neurons, ascending int32."""

    def clear(self) -> None:
        """Empty all slots; heat stays."""

    def admit(self, neuron: int) -> tuple[int, bool]:
        """(slot or -1, whether it was there already)."""

    def replay(self, ids: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], offsets: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> tuple[Annotated[NDArray[numpy.int32], dict(shape=(None,))], Annotated[NDArray[numpy.int64], dict(shape=(None,))]]:
        """
        One update for each ids[offsets[t]:offsets[t + 1]]. Returns what had to be read: (ids, offsets) in the same form, ascending.
        """

    @property
    def hits(self) -> list[tuple[int, int]]:
        """(neuron, slot) pairs that were in memory."""

    @property
    def misses(self) -> list[tuple[int, int]]:
        """(neuron, slot) pairs to read."""

    @property
    def overflow(self) -> list[int]:
        """Neurons that found no slot."""

    @property
    def moves(self) -> list[tuple[int, int]]:
        """(from, to) slot copies, in order, before anything is read."""

    @property
    def live(self) -> int:
        """Slots in use: always the first ones."""

    @property
    def capacity(self) -> int:
        """Slots."""

    def neuron_of(self, slot: int) -> int:
        """The neuron in a slot."""

class FfnStats:
    """Counts of one layer since the last reset."""

    @property
    def hits(self) -> int:
        """Neurons that were in memory."""

    @property
    def misses(self) -> int:
        """Neurons read."""

    @property
    def overflow(self) -> int:
        """Neurons read and dropped, for want of a slot."""

    @property
    def predicted(self) -> int:
        """Neurons computed."""

    @property
    def active(self) -> int:
        """Of them, with a non-zero output."""

    @property
    def reads(self) -> int:
        """Window reads, after merging."""

    @property
    def bytes_copied(self) -> int:
        """Bytes moved in memory."""

    @property
    def tokens(self) -> int:
        """Tokens."""

class DecoderStats:
    """Times and reads since the last reset."""

    @property
    def tokens(self) -> int:
        """Tokens."""

    @property
    def passes(self) -> int:
        """Calls of forward()."""

    @property
    def total_ns(self) -> int:
        """Nanoseconds in forward()."""

    @property
    def wait_ns(self) -> int:
        """Of them, blocked on storage."""

    @property
    def upkeep_ns(self) -> int:
        """Of them, window upkeep."""

    @property
    def predict_ns(self) -> int:
        """Of them, predictors."""

    @property
    def io_bytes(self) -> int:
        """Bytes read from storage."""

    @property
    def io_reads(self) -> int:
        """Reads from storage."""

    @property
    def io_busy_ns(self) -> int:
        """Nanoseconds with a read in flight."""

class Decoder:
    """A recorded forward pass over a file's weights."""

    def __init__(self, path: str, *, context: int, batch: int, threads: int, direct: bool, backend: str, depth: int, max_reads: int, staging_bytes: int, merge_gap: int, read_max: int, seed_tokens: int, overlap: bool = True, bundled: bool = True, reuse: bool = True) -> None: ...

    def tensor(self, offset: int, type: int, rows: int, cols: int, resident: bool, crc: int | None) -> int:
        """Load a (rows, cols) matrix, checked against its CRC-32C; its id."""

    def register(self, width: int) -> int:
        """A buffer of (batch, width) floats; its id."""

    def embed(self, table: int, dst: int) -> None:
        """dst = table[token]."""

    def position(self, table: int, dst: int, first_row: int) -> None:
        """dst += table[first_row + position]."""

    def rms_norm(self, src: int, dst: int, weight: int, eps: float) -> None:
        """dst = weight * src / rms(src)."""

    def layer_norm(self, src: int, dst: int, weight: int, bias: int, eps: float) -> None:
        """dst = layer norm of src; bias -1: none."""

    def linear(self, src: int, dst: int, weight: int, bias: int = -1) -> None:
        """dst = weight @ src + bias."""

    def rope(self, target: int, heads: int, head_dim: int, inv_freq: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)], interleaved: bool, scale: float = 1.0) -> None:
        """Rotary positions, in place."""

    def attention(self, q: int, k: int, v: int, dst: int, heads: int, kv_heads: int, head_dim: int) -> None:
        """Causal attention over the cache, which takes in k and v."""

    def add(self, dst: int, src: int) -> None:
        """dst += src."""

    def ffn(self, src: int, dst: int, *, offset: int, stride: int, neurons: int, width: int, type: int, gated: bool, act: int, threshold: float, residency: int, capacity: int, window_tokens: int, up_bias: int, down_bias: int, fc1: int, fc2: int, fc2_bias: int, use_predictor: bool) -> None:
        """A feed-forward layer from bundles on storage."""

    def logits(self, src: int, weight: int) -> None:
        """logits = weight @ src; the last operation."""

    def forward(self, tokens: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], position: int, logits: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu')], decode: bool, seed: bool) -> None:
        """
        Run tokens at `position`; logits (1 or tokens, vocabulary) are written in place.
        """

    def reset_windows(self) -> None:
        """Empty every window."""

    def capture(self, inputs: Annotated[NDArray[numpy.float32], dict(shape=(None, None, None), order='C', device='cpu')] | None, hidden: Annotated[NDArray[numpy.float32], dict(shape=(None, None, None), order='C', device='cpu')] | None) -> None:
        """
        Copy each FFN's input and hidden activations in coming prefills; None stops it. The caller keeps the arrays alive until then.
        """

    def script(self, ids: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], offsets: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> None:
        """Ablations: take these active sets instead of the predictor's."""

    def stats(self) -> DecoderStats:
        """Times and reads."""

    def ffn_stats(self, layer: int) -> FfnStats:
        """Counts of one layer."""

    def reset_stats(self) -> None:
        """Start counting anew."""

    @property
    def memory_bytes(self) -> int:
        """Bytes that weights, windows, caches and buffers take."""

    @property
    def backend(self) -> str:
        """The read queue in use."""

    @property
    def direct(self) -> bool:
        """Whether reads bypass the page cache."""

class StreamerStats:
    """Counts since the streamer started, without the pinned weights."""

    @property
    def bytes(self) -> int:
        """Read from storage."""

    @property
    def reads(self) -> int:
        """Requests."""

    @property
    def busy_ns(self) -> int:
        """Time with a read in flight."""

    @property
    def wait_ns(self) -> int:
        """Time that the graph waited for storage."""

    @property
    def pinned_bytes(self) -> int:
        """Weights that stay in memory."""

    @property
    def stops(self) -> int:
        """Nodes after which the graph stopped."""

class ExpertStats:
    """Counts of the expert window since the start."""

    @property
    def used(self) -> int:
        """Experts that routers chose, each once a layer and batch."""

    @property
    def misses(self) -> int:
        """Of these, those not in memory."""

    @property
    def evicted(self) -> int:
        """Experts that left."""

    @property
    def read_ahead(self) -> int:
        """Experts read before their router ran."""

class WeightStreamer:
    """
    Keeps the weights in memory that the next node of llama.cpp's graph uses.
    """

    def __init__(self, paths: Sequence[str], direct: bool, backend: str, depth: int) -> None: ...

    def mapped(self, file: int, offset: int, address: int, bytes: int) -> None:
        """Where bytes of a file are mapped."""

    def pin(self, file: int, offset: int, bytes: int) -> None:
        """Pages that stay in memory."""

    def stream(self, file: int, offset: int, bytes: int) -> None:
        """Pages of one tensor that pass through the ring."""

    def experts(self, layer: int, file: int, offset: int, stride: int, count: int) -> None:
        """A tensor with one matrix of each expert of a layer."""

    def expect(self, name: str, file: int, offset: int) -> None:
        """Fail when llama.cpp keeps this tensor anywhere else."""

    def start(self, ring_bytes: int, window_bytes: int, policy: str, expert_layers: Sequence[int], ring_memory: str = 'aliases') -> None:
        """Replace the mapping and read what is pinned."""

    def access(self, get_name: int, get_data: int, nbytes: int, nelements: int, nrows: int, get_i32_nd: int, sources_offset: int, sources: int) -> None:
        """Addresses of ggml's accessors, and where a tensor keeps its sources."""

    @property
    def callback(self) -> int:
        """For cb_eval."""

    @property
    def abort_callback(self) -> int:
        """For abort_callback."""

    def cancel(self, on: bool) -> None:
        """End the pass that runs, from any thread; until it is taken back."""

    @property
    def user_data(self) -> int:
        """For cb_eval_user_data."""

    def take_failure(self) -> str:
        """Why the last pass failed, or ''. The next pass starts afresh."""

    def unchanged(self, file: int) -> bool:
        """Whether the file has the size and time it had at the start."""

    def stats(self) -> StreamerStats: ...

    def expert_stats(self) -> ExpertStats: ...

    @property
    def window_bytes(self) -> int: ...

    @property
    def held_bytes(self) -> int: ...

    @property
    def on_demand(self) -> int:
        """Streamed tensors that had not been read ahead."""

    def record(self, on: bool) -> None:
        """Keep what routers choose."""

    def take_trace(self) -> list[int]:
        """
        Pairs (layer, expert), -1 -1 where a token begins; what was taken is forgotten.
        """

def address_space_supported() -> bool:
    """Whether pages under a foreign mapping can be replaced on this system."""

def replay_experts(policy: str, experts: int, capacity: int, layers: int, ids: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], offsets: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> tuple[int, int]:
    """
    (misses, uses) of a recorded run; a step is ids[offsets[s]:offsets[s + 1]]. Policies lru, lfu, last-k, belady.
    """

class SplatCamera:
    """A pinhole camera: x right, y down, z forward."""

    def __init__(self, *, rotation: Sequence[float], translation: Sequence[float], fx: float, fy: float, cx: float, cy: float, width: int, height: int, near_plane: float) -> None: ...

    @property
    def width(self) -> int:
        """Pixels."""

    @property
    def height(self) -> int:
        """Pixels."""

class SplatOptions:
    """What a picture is made with besides scenes and a camera."""

    def __init__(self, *, time: float, background: Sequence[float], low_pass: float, least_weight: float, omg4_sentinel: bool, colour_tolerance: float, most_pairs: int) -> None: ...

class SplatTimes:
    """What a picture took."""

    @property
    def colour_ms(self) -> float:
        """Evaluating spherical harmonics."""

    @property
    def project_ms(self) -> float:
        """From splats to footprints."""

    @property
    def sort_ms(self) -> float:
        """By depth."""

    @property
    def bin_ms(self) -> float:
        """Listing each tile's splats."""

    @property
    def blend_ms(self) -> float:
        """Pixels, or their gradient."""

    @property
    def coloured(self) -> int:
        """Splats whose spherical harmonics were evaluated."""

    @property
    def active(self) -> int:
        """Splats that were looked at."""

    @property
    def visible(self) -> int:
        """Splats that reach a pixel."""

    @property
    def pairs(self) -> int:
        """Of a splat and a tile."""

class SplatScene:
    """Splats to draw. Arrays are borrowed: what is changed in them is drawn."""

    def __init__(self, *, mean: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], covariance: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], log_opacity: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)], colour: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)] | None, sh: Annotated[NDArray[numpy.float32], dict(shape=(None, 3, None), order='C', device='cpu', writable=False)] | None, velocity: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)] | None, t_center: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)] | None, t_sigma: Annotated[NDArray[numpy.float32], dict(shape=(None,), order='C', device='cpu', writable=False)] | None) -> None:
        """
        mean (3, n), covariance (6, n): xx xy xz yy yz zz, log_opacity (n); colour (3, n) or sh (k, 3, n),
        which must not change, nor the means with them; velocity (3, n), t_center (n) and t_sigma (n), or none.
        """

    @property
    def count(self) -> int:
        """Splats."""

    @property
    def bytes(self) -> int:
        """That it keeps besides the arrays: colours that follow the camera."""

class SplatRenderer:
    """A rasteriser with threads and room of its own."""

    def __init__(self, threads: int) -> None: ...

    def render(self, scenes: Sequence[SplatScene], ranges: Sequence[Annotated[NDArray[numpy.int64], dict(shape=(None, 2), order='C', device='cpu', writable=False)]], camera: SplatCamera, options: SplatOptions, image: Annotated[NDArray[numpy.float32], dict(shape=(None, None, 3), order='C', device='cpu')], rest: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu')] | None) -> SplatTimes:
        """
        Draw into image (height, width, 3), and into rest (height, width) the transmittance that is left. Of
        each scene, the splats of its ranges (m, 2): begin and end, ascending, not overlapping.
        """

    def backward(self, scene: SplatScene, camera: SplatCamera, options: SplatOptions, image_gradient: Annotated[NDArray[numpy.float32], dict(shape=(None, None, 3), order='C', device='cpu', writable=False)], gradients: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu')]) -> SplatTimes:
        """
        Given a loss's gradient by the image that render draws, fill gradients (16 or 21, n), whose rows are
        colour 3, opacity, mean 3, covariance 6, the middle in pixels 2, blend weight (no gradient), and of a
        scene that moves velocity 3, t_center, t_sigma.
        """

    @property
    def threads(self) -> int:
        """Threads, the caller's with them."""

    @property
    def bytes(self) -> int:
        """Room that is kept from picture to picture."""

def splat_room_bytes(active: int, width: int, height: int, threads: int, most_pairs: int) -> int:
    """
    Most that a renderer's room grows to for so many active splats and an image of this size.
    """

class SplatTraining:
    """
    Loops over a model's splats that training needs besides the rasteriser. `rows` are int64, ascending: the
    splats that are drawn. Models are (n, ...), a row a splat; what the rasteriser takes and gives is
    (components, m).
    """

    def __init__(self, threads: int) -> None: ...

    def columns(self, values: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], rows: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)], out: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu')]) -> None:
        """Rows of values (n, c) into out (c, m)."""

    def covariances(self, scales: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], rotations: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], rows: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)], out: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu')]) -> None:
        """
        Of scales (n, 3) and unit quaternions (n, 4): xx xy xz yy yz zz into out (6, m).
        """

    def shape_gradients(self, scales: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], rotations: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], rows: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)], by_covariance: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], by_scale: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu')], by_rotation: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu')]) -> None:
        """
        From that by the covariances (6, m), as six free numbers, to by_scale (m, 3), of ln scale, and by_rotation
        (m, 4), of the unit quaternion and along the sphere only.
        """

    def colours(self, sh: Annotated[NDArray[numpy.float32], dict(shape=(None, None, 3), order='C', device='cpu', writable=False)], means: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], eye: Sequence[float], rows: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)], out: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu')]) -> None:
        """
        0.5 and the harmonics sh (n, k, 3) of the direction from eye to means (n, 3), 0 or more, into out (3, m).
        """

    def harmonics_gradients(self, means: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], eye: Sequence[float], rows: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)], colour: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], by_colour: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], out: Annotated[NDArray[numpy.float32], dict(shape=(None, None, 3), order='C', device='cpu')]) -> None:
        """
        From that by colours (3, m) to out (m, k, 3); colour (3, m) as `colours` gave it: none flows through a 0.
        """

    def add_rows(self, total: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu')], rows: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)], part: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)]) -> None:
        """Add part (m, c) to these rows of total (n, c)."""

    def adam(self, values: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu')], first: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu')], second: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu')], steps: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu')], rows: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)], gradient: Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], rate: float) -> None:
        """
        A step of Adam in these rows of values, whose averages are first and second and whose gradient is gradient,
        all (n, c); steps (n), int32, counts each row's. What is not finite in a gradient counts as 0.
        """

    @property
    def threads(self) -> int:
        """Threads, the caller's with them."""

class DirectFile:
    """
    A file opened for reads past the page cache; where those are refused, what was read is dropped from it.
    """

    def __init__(self, path: str | bytes, direct: bool = True) -> None:
        """
        path: a name with any bytes, as os.fsencode takes it. Raises StorageError.
        """

    def read(self, offset: int, bytes: int) -> Annotated[NDArray[numpy.uint8], dict(shape=(None,))]:
        """A range of the file as a uint8 array. Raises StorageError."""

    @property
    def size(self) -> int:
        """Bytes of the file."""

class SplatCoder:
    """
    How the groups of one .psplat file are coded, and what its first group has taught.
    """

    def __init__(self, bits: int, modelled_digits: int, slowest: int, digits: Sequence[int] | None, channels: Annotated[NDArray[numpy.uint32], dict(shape=(None, 9), order='C', device='cpu', writable=False)]) -> None:
        """
        digits: the coding of how many octal digits are kept, or None where all are. channels: (n, 9) uint32; size,
        mode, raw, predictor, reference, buckets, reference buckets, slowest, sparse. Raises ValueError.
        """

    def decode(self, payload: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu', writable=False)], count: int, primed: bool = False, learn: bool = False) -> tuple[Annotated[NDArray[numpy.uint32], dict(shape=(None, 3))], Annotated[NDArray[numpy.uint8], dict(shape=(None,))], list[Annotated[NDArray[numpy.uint16], dict(shape=(None,))]]]:
        """
        (cells (count, 3) uint32, digits kept (count or 0) uint8, numbers of each channel (count) uint16).
        primed: begin with what a call with learn has taught. Raises FormatError, ValueError.
        """

    def encode(self, cells: Annotated[NDArray[numpy.uint32], dict(shape=(None, 3), order='C', device='cpu', writable=False)], digits: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu', writable=False)], channels: Sequence[Annotated[NDArray[numpy.uint16], dict(shape=(None,), order='C', device='cpu', writable=False)]], primed: bool = False, learn: bool = False) -> bytes:
        """
        The payload of a group whose cells ascend by Morton code; digits: empty where all are kept.
        """

    def bits(self, cells: Annotated[NDArray[numpy.uint32], dict(shape=(None, 3), order='C', device='cpu', writable=False)], digits: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu', writable=False)], channels: Sequence[Annotated[NDArray[numpy.uint16], dict(shape=(None,), order='C', device='cpu', writable=False)]], primed: bool = False) -> list[float]:
        """Bits that a group takes: of the positions, then of each channel."""

def decode_sheets(payload: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu', writable=False)], shapes: Sequence[tuple[int, int]], specs: Annotated[NDArray[numpy.uint32], dict(shape=(None, 9), order='C', device='cpu', writable=False)]) -> list[Annotated[NDArray[numpy.uint16], dict(shape=(None,))]]:
    """
    Numbers of each sheet (rows, columns) of a codebook section, flat. Raises FormatError, ValueError.
    """

def encode_sheets(values: Sequence[Annotated[NDArray[numpy.uint16], dict(shape=(None,), order='C', device='cpu', writable=False)]], columns: Sequence[int], specs: Annotated[NDArray[numpy.uint32], dict(shape=(None, 9), order='C', device='cpu', writable=False)]) -> bytes:
    """The payload of sheets, flat numbers row by row."""

def gather_entries(parts: Sequence[tuple[Annotated[NDArray[numpy.float32], dict(shape=(None, None), order='C', device='cpu', writable=False)], Annotated[NDArray[numpy.uint16], dict(shape=(None,), order='C', device='cpu', writable=False)], int, bool]], out: Annotated[NDArray[numpy.float32], dict(shape=(None, None), device='cpu')]) -> None:
    """
    Write columns of out (n, width): each part is entries (K, d), indices (n) below K, the first column,
    and whether to add to what is there. Raises ValueError.
    """

def channel_bits(values: Annotated[NDArray[numpy.uint16], dict(shape=(None,), order='C', device='cpu', writable=False)], neighbours: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], spec: Annotated[NDArray[numpy.uint32], dict(shape=(None, 9), order='C', device='cpu', writable=False)], reference: Annotated[NDArray[numpy.uint16], dict(shape=(None,), order='C', device='cpu', writable=False)] | None, reference_size: int = 1) -> float:
    """Bits that a channel takes alone."""

def splat_neighbours(cells: Annotated[NDArray[numpy.uint32], dict(shape=(None, 3), order='C', device='cpu', writable=False)], digits: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu', writable=False)], bits: int) -> Annotated[NDArray[numpy.int32], dict(shape=(None,))]:
    """
    Of each splat the nearest of the 32 before it, or -1; cells ascend by Morton code.
    """
