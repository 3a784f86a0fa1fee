"""Texts of a log that decide the kind of a failure, of vLLM, torch, drivers, compilers and Docker.

They were read in the source of vLLM 0.24 to 0.32, in torch, and in public reports. They are tried
in order and the first that finds a line wins, so the specific ones come first.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from autotune.errors import FailureKind, LeastBudget


@dataclass(frozen=True)
class Rule:
    """A text of a log that decides the kind of a failure.

    Attributes:
        kind: Kind of the failure.
        pattern: Text of a line that reports an error.
        sentence: Reason; may name the groups of both patterns. With ``{when}`` the stage decides
            kind and words.
        context: Text that must be somewhere in the log, too.
        warnings: Whether it may also be in a library's warning, since it ends with that.
        every_n: Whether the bound in the group ``least`` holds for every n.
        anywhere: Whether a line counts that is no part of an exception, where the log has one: a
            library may print the same words and go on.
        after: Text of an exception by which such a line counts all the same; it is the output of
            what the exception says has failed.
        begun: Whether it may be the cause once vLLM has logged a line of its own.
    """

    kind: FailureKind
    pattern: re.Pattern[str]
    sentence: str
    context: re.Pattern[str] | None = None
    warnings: bool = False
    every_n: bool = False
    anywhere: bool = True
    after: re.Pattern[str] | None = None
    begun: bool = True

    def bound(self, groups: dict[str, str]) -> LeastBudget | None:
        """Return the bound that the text states; None: none."""
        if "least" in groups and groups["least"].isdigit():
            return LeastBudget(int(groups["least"]), self.every_n)
        if "below" in groups and groups["below"].isdigit():
            return LeastBudget(int(groups["below"]) + 1, self.every_n)
        return None


def _rule(
    kind: FailureKind,
    pattern: str,
    sentence: str,
    context: str | None = None,
    *,
    warnings: bool = False,
    every_n: bool = False,
) -> Rule:
    found = None if context is None else re.compile(context)
    return Rule(kind, re.compile(pattern), sentence, found, warnings, every_n)


def _raised(pattern: str, sentence: str) -> Rule:
    """Return a rule for a fault of the machine that only an exception can tell."""
    return Rule(FailureKind.MACHINE, re.compile(pattern), sentence, anywhere=False)


def _built(pattern: str, sentence: str) -> Rule:
    """Return a rule for what a compiler or a build tool prints when a kernel is built."""
    kind, found = FailureKind.MACHINE, re.compile(pattern)
    return Rule(kind, found, sentence, anywhere=False, after=_BUILD_FAILED)


def _start(kind: FailureKind, pattern: str, sentence: str) -> Rule:
    """Return a rule for what shells, wrappers and container engines say instead of starting vLLM.

    They complain, too, of what they then do without.
    """
    return Rule(kind, re.compile(pattern), sentence, begun=False)


# an exception that says that a program failed whose output is elsewhere in the log
_BUILD_FAILED = re.compile(
    r"(?i)returned non-zero exit status|\bninja\b|\bn(?:v|vr)tc\b|\bnvcc|CUDA_HOME|"
    r"InductorError|BackendCompilerFailed|Comp\w*Error|\bcompil|\bbuild|\bptxas"
)


K = FailureKind  # short, because every rule has it
_SHM = (
    "shared memory (/dev/shm) is full: a container needs --ipc=host, or --shm-size with several "
    "GiB; elsewhere make /dev/shm larger, or remove what is left in it"
)
_DRIVER = "update the GPU's driver, or install a torch for it"
_NO_GPU = (
    "no GPU can be used: look at nvidia-smi, at CUDA_VISIBLE_DEVICES, and in a container at --gpus"
)
_INSTALL = "repair the environment of vLLM"
# matches a log if the draft was being loaded or run
DRAFTING = r"self\.(?:drafter|speculator)\.load_model|spec_decode/[\w/]+\.py|qwen3_dflash\.py"
_TORN = r"SafetensorError: Error while deserializing header: (?P<what>.+)"
_BATCH = r"(?:--)?max[-_]num[-_]batched[-_]tokens"

_STORAGE = (
    _rule(
        K.MACHINE,
        r"(?:No space left on device|failed to extend|[Ee]rror while creating|"
        r"insufficient|unable to (?:open|write|allocate)).*(?:/dev/shm|/psm_|/torch_\d+|"
        r"shared memory)|"
        r"(?:/dev/shm|/psm_|/torch_\d+|shared memory).*(?:No space left|Cannot allocate memory|"
        r"out of space)|insufficient shared memory",
        _SHM,
    ),
    _rule(
        K.MACHINE,
        r"NCCL WARN .*(?:/dev/shm|shared memory).*No space left on device",
        _SHM,
        context=r"(?m)unhandled system error|ncclSystemError|Bus error|SIGBUS",
        warnings=True,
    ),
    _rule(
        K.DISK,
        r"(?:No space left on device|Disk quota exceeded): '(?P<path>[^']+)'",
        "the disk is full: {path} could not be written",
    ),
    _rule(
        K.DISK,
        r"No space left on device|Disk quota exceeded",
        "the disk is full, or the one of vLLM's cache (VLLM_CACHE_ROOT) or of TMPDIR",
    ),
    _rule(
        K.PORT,
        r"(?i)address already in use|EADDRINUSE|port is already allocated|"
        r"Could not find open port|no free port",
        "somebody else holds the port",
    ),
)
_BUDGET = (
    _rule(
        K.BUDGET,
        r"not have enough slots .*max_num_batched_tokens=(?P<mnbt>\d+) and "
        r"scheduled_token_delta=(?P<below>\d+)",
        "max_num_batched_tokens = {mnbt} leaves no room for {below} draft tokens",
    ),
    _rule(
        K.BUDGET,
        r"not have enough slots to schedule a token and support the speculative",
        "max_num_batched_tokens leaves no room for the draft tokens",
    ),
    _rule(
        K.BUDGET,
        r"max_num_scheduled_tokens is set to (?P<left>-?\d+) based on",
        "max_num_batched_tokens leaves {left} tokens to schedule next to the draft tokens",
    ),
    _rule(
        K.BUDGET,
        r"max_num_batched_tokens \((?P<mnbt>\d+)\) must be greater than or equal to "
        r"max_num_seqs \((?P<least>\d+)\)",
        "max_num_batched_tokens = {mnbt} is below max_num_seqs = {least}",
        every_n=True,
    ),
    _rule(
        K.BUDGET,
        r"max_num_batched_tokens \((?P<mnbt>\d+)\) is smaller than max_model_len "
        r"\((?P<least>\d+)\)",
        "max_num_batched_tokens = {mnbt} is below max_model_len = {least} without chunked prefill",
        every_n=True,
    ),
    # A block of a hybrid model grows with n: its convolution keeps n more columns.
    _rule(
        K.BUDGET,
        r"block_size \((?P<least>\d+)\) must be <= max_num_batched_tokens \((?P<mnbt>\d+)\)",
        "max_num_batched_tokens = {mnbt} is below the block size {least}, which prefix caching of "
        "a hybrid model has to schedule whole",
    ),
    _rule(
        K.BUDGET,
        r"max_tokens_per_mm_item \((?P<least>\d+)\) is larger than max_num_batched_tokens "
        r"\((?P<mnbt>\d+)\)",
        "max_num_batched_tokens = {mnbt} is below the {least} tokens of one image, video or audio",
        every_n=True,
    ),
    _rule(
        K.BUDGET,
        r"Dummy run with (?P<least>\d+) tokens exceeds max_num_batched_tokens \((?P<mnbt>\d+)\)",
        "max_num_batched_tokens = {mnbt} is below the {least} tokens of the warm-up",
    ),
    _rule(
        K.BUDGET,
        rf"{_BATCH}\W*(?:=\s*)?\(?(?P<mnbt>\d+)?\)? (?:must|should|has to|needs to|is required to) "
        rf"be (?:at least|>=|no less than|greater than or equal to|larger than or equal to)"
        rf"[^\d\n]*(?P<least>\d+)",
        "max_num_batched_tokens must be at least {least}",
    ),
    _rule(
        K.BUDGET,
        rf"(?P<what>.*\((?P<least>\d+)\) (?:must be <=|must not exceed|exceeds|is (?:larger|"
        rf"greater)"
        rf" than|cannot exceed) {_BATCH} \(\d+\).*)",
        "max_num_batched_tokens is too small: {what}",
    ),
    _rule(
        K.BUDGET,
        # anchored: each start of a long line would be tried
        rf"^(?P<what>.*(?i:(?:increas(?:e|ing)|rais(?:e|ing)|larger|higher|too small) "
        rf"(?:the )?(?:value of )?[`'\"]?{_BATCH}).*|.*{_BATCH}\b.* (?:is )?too small.*)",
        "max_num_batched_tokens is too small: {what}",
    ),
)
_MEMORY = (
    _rule(
        K.KV_CACHE,
        r"No available memory for the cache blocks",
        "no memory is left for the KV cache",
    ),
    _rule(
        K.KV_CACHE,
        r"max seq len \((?P<len>\d+)\).*?(?P<needed>[\d.]+) GiB KV cache is needed.*?"
        r"memory \((?P<there>[\d.]+) GiB\)",
        "a KV cache of {needed} GiB is needed for max_model_len = {len}, {there} GiB is there",
    ),
    _rule(
        K.KV_CACHE,
        r"max seq len .*KV cache is needed|Cannot auto-fit max_model_len",
        "max_model_len does not fit into the memory that is left for the KV cache",
    ),
    _rule(
        K.KV_CACHE,
        r"Available memory on node \S+ \((?P<there>[\d.]+)/[\d.]+ GiB\).*requested memory for kv "
        r"\((?P<needed>[\d.]+) GiB\)",
        "a KV cache of {needed} GiB is asked for, {there} GiB are free",
    ),
    _rule(
        K.OOM_LOAD,
        r"Available memory on node \S+ .* on startup is less than",
        "too little memory is free before the start: something else holds it",
    ),
    _rule(
        K.KV_CACHE,
        r"Available memory on node \S+ .*\bkv\b",
        "the KV cache that is asked for does not fit into the free memory",
    ),
    _rule(
        K.KV_CACHE,
        r"larger than the maximum number of tokens that can be stored in KV cache",
        "max_model_len does not fit into the KV cache",
    ),
    _rule(
        K.KV_CACHE,
        r"max_num_seqs \((?P<seqs>\d+)\) exceeds available Mamba cache blocks \((?P<there>\d+)\)",
        "max_num_seqs = {seqs} needs as many blocks of the Mamba cache, {there} fit into memory",
    ),
    # This is before loading. It has that kind because it depends on neither n nor the batch budget.
    _rule(
        K.OOM_LOAD,
        r"Free memory on device (?P<device>\S*) ?\((?P<free>[\d.]+)/(?P<total>[\d.]+) GiB\) on "
        r"startup is less than",
        "only {free} of {total} GiB are free on {device}: something else holds its memory, or "
        "gpu_memory_utilization is too high",
    ),
    _rule(
        K.OOM_LOAD,
        r"Free memory on device .* on startup is less than|Externally held weights on device",
        "too little of the device's memory is free: something else holds it, or "
        "gpu_memory_utilization is wrong",
    ),
    _rule(
        K.OOM,
        r"CUDA out of memory occurred when warming up \w+ with (?P<n>\d+) dummy requests",
        "the device is out of memory while warming up: it cannot sample for {n} requests at once",
    ),
    _rule(
        K.OOM,
        r"(?:CUDA|HIP|XPU|NPU|HPU|MPS|MUSA)[ \w]* out of memory[.:]? +Tried to allocate "
        r"(?P<size>[\d.]+ \w+)",
        "the device is out of memory{when}: {size} more could not be allocated",
    ),
    _rule(
        K.OOM,
        r"(?:CUDA|HIP|XPU|NPU|HPU|MPS|MUSA)[ \w]* out of memory|"
        r"(?:CUDA|HIP|XPU|cuMem\w+|CUDA driver|ROCm) error:? *(?:\d+ )?\(?out of memory|"
        r"Triton Error \[\w+\]: out of memory|"
        r"CUDA_ERROR_OUT_OF_MEMORY|cudaErrorMemoryAllocation|hipErrorOutOfMemory|OutOfMemoryError|"
        r"OUT_OF_(?:DEVICE|HOST)_MEMORY|OUT_OF_RESOURCES|not enough GPU memory|"
        r"(?:CUBLAS|HIPBLAS)_STATUS_ALLOC_FAILED|RESOURCE_EXHAUSTED|"
        r"[Rr]an out of memory in memory space|PT_DEVMEM.*[Aa]llocation failed|"
        r"Allocation failed for size|synStatus\S* .*(?:out of|no) .*memory|"
        r"Attempting to allocate .* more than available",
        "the device is out of memory{when}",
    ),
    _rule(
        K.OOM,
        r"can't allocate memory: you tried to allocate (?P<size>\d+) bytes",
        "the machine is out of memory{when}: {size} bytes more could not be allocated",
    ),
    _rule(
        K.OOM,
        r"^MemoryError|std::bad_alloc|Cannot allocate memory|unable to mmap .* bytes|"
        r"numpy\S*ArrayMemoryError",
        "the machine is out of memory{when}",
    ),
)
_GPUS = (
    _raised(
        r"Error 80[34]\b.*|unsupported display driver.*|forward compatibility was attempted.*|"
        r"[Dd]river/library version mismatch|SYSTEM_DRIVER_MISMATCH|COMPAT_NOT_SUPPORTED_ON_DEVICE",
        "the GPU's driver and CUDA do not fit: in a container remove its cuda-compat libraries "
        "from LD_LIBRARY_PATH; elsewhere reboot, or install the driver again",
    ),
    _raised(
        r"driver on your system is too old|driver version is insufficient|"
        r"PTX was compiled with an unsupported toolchain|UNSUPPORTED_PTX_VERSION|"
        r"driver.* is too old|requires? (?:a )?newer .*driver",
        f"the GPU's driver is too old for this CUDA: {_DRIVER}",
    ),
    _raised(
        r"no kernel image is available|device kernel image is invalid|invalid device function|"
        r"NO_BINARY_FOR_GPU|sm_\d+\w* is not compatible with the current PyTorch|"
        r"is not supported by the current PyTorch",
        "this build has no code for the GPU's generation: install a torch and a vLLM for it",
    ),
    _raised(
        r"[Ss]ystem not yet initialized|Error 802\b",
        "the GPUs are not ready: start the fabric manager (nvidia-fabricmanager) of its driver",
    ),
    _raised(
        r"uncorrectable ECC error|GPU is lost|fallen off the bus|Unable to determine the device "
        r"handle|ECC_UNCORRECTABLE|HARDWARE_ERROR|NVLink error",
        "a GPU is broken or lost: look at nvidia-smi and dmesg; a reboot may help",
    ),
    _raised(
        r"No (?:CUDA|HIP|XPU) (?:GPUs|devices) are available|no CUDA-capable device|"
        r"ERROR_NO_DEVICE|Found no NVIDIA driver|libcuda\.so\S*: cannot open|"
        r"Failed to infer device type|NVML Shared Library Not Found|NVMLError\w*|"
        r"Failed to initialize NVML|NVML returned no|not compiled with CUDA enabled|"
        r"CUDA unknown error|"
        r"(?:devices are|device\(s\) is/are) busy or unavailable|TPU is already in use|"
        r"has no \S+ available\.|amdsmi did not return|"
        r"GCN arch .*(?:too few|exceeds the known|unknown)|unknown ROCm architecture",
        f"{_NO_GPU} ({{line}})",
    ),
    _raised(
        r"FlashInfer requires GPUs with sm\d+|FlashInfer requires .*(?:compute capability|SM\d+)",
        "{line}: these GPUs, as FlashInfer sees them, are too old, or nvcc does not know them; "
        "choose another attention backend and sampler (VLLM_USE_FLASHINFER_SAMPLER=0)",
    ),
)
_BUILDS = (
    _built(
        r"[Ff]ailed to find C compiler|[Nn]o C compiler|(?:\b(?:gcc|g\+\+|cc|c\+\+|clang)\S*: "
        r"(?:command )?not found)|No such file or directory: '(?:\S*/)?(?:gcc|g\+\+|cc|c\+\+|clang)"
        r"\S*'|cannot find (?:a )?C(?:\+\+)? compiler|No working C(?:\+\+)? compiler",
        "there is no C compiler: install gcc, or set CC",
    ),
    _built(
        r"Python\.h: No such file",
        "Python's headers are missing: install python3-dev for this Python",
    ),
    _built(
        r"nvcc\S*: (?:command )?not found|[Cc]ould not find (?:nvcc|CUDA)|CUDA_HOME.* (?:is "
        r")?not set|"
        r"nvcc.* (?:is )?not (?:found|installed|available)|No such file or directory: "
        r"'\S*(?:nvcc|ptxas|cuobjdump)\S*'|CUDA_HOME does not exist|set CUDA_HOME|"
        r"cuda_runtime\S*\.h: No such file",
        "nvcc is missing: install the CUDA toolkit, set CUDA_HOME ({line})",
    ),
    _built(
        r"(?i)Ninja is required|ninja\S*: (?:command )?not found|"
        r"No such file or directory: '\S*ninja'",
        "ninja is missing: install it into vLLM's environment (pip install ninja)",
    ),
    _built(
        r"ptxas (?:fatal|error)\b.*|nvcc (?:fatal|error)\b.*|cannot find -l\w+|"
        r"(?:gcc|g\+\+|cc1plus|cc1|ld|collect2)\S*: (?:fatal )?error:.*|: fatal error: .*",
        "a kernel cannot be compiled here ({line}): the compiler does not know this GPU, or lacks "
        "a part",
    ),
    _raised(
        r"Command '\['?\S*(?:gcc|g\+\+|cc|c\+\+|clang\S*)'.*"
        r"(?:cuda_utils|__triton_launcher|main)\.c\b.*returned non-zero",
        "Triton's launcher cannot be compiled here: its C compiler lacks python3-dev, libcuda or a "
        "part of its own",
    ),
    Rule(
        K.BAD_CONFIG,
        re.compile(
            r"out of resource: shared memory, Required: (?P<needed>\d+).*limit: (?P<there>\d+)"
        ),
        "a kernel needs {needed} bytes of the GPU's own shared memory, it has {there}: choose "
        "another attention backend or block size",
        anywhere=False,
    ),
    _raised(
        r"undefined symbol|cannot open shared object file|DLL load failed|"
        r"version [`'](?:GLIBC\w*|CXXABI|GOMP)\S*' not found|operator torch\w+::\w+ does not exist|"
        r"PackageNotFoundError|numpy\.dtype size changed|numpy\.core\.multiarray failed to import|"
        r"is not a supported wheel|ABI (?:version )?mismatch|Only one platform plugin can be "
        r"activated|vllm\._C\b.*(?:not found|cannot)",
        f"the installation is broken ({{line}}): {_INSTALL}",
    ),
    _raised(
        r"(?:ModuleNotFoundError: )?No module named (?P<module>'[\w.-]+'|\w+$)",
        "the package {module} is missing: install it into vLLM's environment",
    ),
    _raised(
        r"cannot import name .*",
        f"two packages do not fit ({{line}}): {_INSTALL}",
    ),
    _raised(
        r"(?i:pip install|Please install|install the package|Install (?:it|a|an|via)\b|"
        r"to be installed|is not installed|\bneeds an? \w+ build\b|Rebuild (?:with|it)|"
        r"packages? (?:is|are|that were) (?:missing|not (?:found|installed))|packages are "
        r"installed|"
        r"requires (?:PyTorch|torch|triton|transformers) ?[><=]|requires Triton\b|"
        r"Please (?:use|upgrade) \S+ (?:version )?[><=]|Failed to import \w+|"
        r"(?:Gloo backend|UVA) is (?:not available|unavailable)|Unsupported OS|"
        r"backend is (?:not available|unavailable)(?: in the current|\. Please)|"
        r"binary was not found|bound to a local interface|Failed to load LogitsProcessor plugin|"
        r"plugin \S+ (?:must be|is not) a subclass|Cannot import module)",
        "the installation lacks something: {line}",
    ),
)
_MODELS = (
    # An incomplete file counts as missing, for the user and for every further launch
    _rule(
        K.MODEL_MISSING,
        _TORN,
        "the weights of the draft {model} cannot be read ({what}): fetch them again",
        context=r"(?s)SpeculativeConfig\([^)]*?model='(?P<model>[^']+)'.*" + DRAFTING,
    ),
    _rule(
        K.MODEL_MISSING,
        _TORN,
        "the weights in {model} cannot be read ({what}): fetch them again",
        context=r"LLM engine \(v\S+ with config: model='(?P<model>[^']+)'",
    ),
    _rule(K.MODEL_MISSING, _TORN, "the weights cannot be read ({what}): fetch them again"),
    _rule(
        K.MODEL_MISSING,
        r"(?:Repo id must be in the form|Invalid repository ID or local directory specified).*?"
        r"'(?P<model>/[^']*)'",
        "there is no model in {model} (no such folder, or it has no config.json)",
    ),
    _rule(
        K.MODEL_MISSING,
        r"Invalid repository ID or local directory specified: '(?P<model>[^']*)'",
        "there is no model {model}, as a folder or on the hub",
    ),
    _rule(
        K.MODEL_MISSING,
        r"Cannot find any model weights(?: with `(?P<model>[^`]+)`)?",
        "{model} has no weights: fetch the model again",
    ),
    _rule(
        K.MODEL_MISSING,
        r"Weight files referenced in index but missing|No such file or directory: "
        r"'[^']*\.(?:safetensors|bin|gguf)|no config file found|Failed to load \w+ "
        r"'[^']*' config for model|Error no file named \S+|does not appear to have a file named",
        "a file of the model is missing ({line}): fetch it again",
    ),
)
_DRAFTS = (
    _rule(
        K.DRAFT_MISMATCH,
        r"must (?:have|specify) `dflash_config\.mask_token_id`",
        "the draft's config.json names no mask token, which drafting in parallel needs",
    ),
    _rule(
        K.DRAFT_MISMATCH,
        r"(?:Attempted|Tried) to load weights? .*of size .*to a parameter of size|size mismatch|"
        r"shapes? cannot be multiplied|is not a parameter|There is no module or parameter named",
        "the draft's weights do not fit its configuration or the target",
        context=DRAFTING,
    ),
)
# A registry that did not answer may answer the next time
_REGISTRY = (
    r"net/http|TLS handshake|i/o timeout|[Cc]onnection re(?:set|fused)|toomanyrequests|"
    r"[Tt]emporary failure|no such host|unexpected EOF|50[0234] "
)
_TOOLS = (
    _rule(
        K.BAD_CONFIG,
        r"error: unrecognized arguments: (?P<flags>.+)",
        "vLLM does not know {flags}",
    ),
    _rule(
        K.BAD_CONFIG,
        r"error: (?P<what>(?:ambiguous option|argument |the following arguments|one of the "
        r"arguments|expected|invalid choice|unrecognized|too few|No such).+)",
        "vLLM rejected its command line: {what}",
    ),
    _rule(
        K.BAD_CONFIG,
        r"^(?:vllm|\S+\.py|python\S*)(?: [\w-]+)*: error: (?P<what>.+)",
        "vLLM rejected its command line: {what}",
    ),
    _start(
        K.MACHINE,
        r"(?P<what>Cannot connect to the (?:Docker|Podman) daemon.*|permission denied while trying "
        r"to connect to the Docker.*|.*(?:unknown or invalid runtime|could not select device "
        r"driver|unresolvable CDI device|nvidia-container-cli).*)",
        "the container cannot be started: {what}",
    ),
    _start(
        K.BAD_CONFIG,
        r"^(?:docker|podman|nerdctl|time=\S+ level=fatal msg=\W?)(?: \w+)*: "
        rf"(?P<what>(?!.*(?:{_REGISTRY})).+)",
        "the container cannot be started: {what}",
    ),
    _start(
        K.BAD_CONFIG,
        rf"(?P<what>^(?:Error response from daemon|OCI runtime)(?!.*(?:{_REGISTRY})).+|"
        r"^FATAL: +.+|^unknown (?:shorthand )?flag: .+)",
        "the container cannot be started: {what}",
    ),
    _start(
        K.BAD_CONFIG,
        r"(?P<what>^(?:\S*(?:sh|bash|env|nohup|exec|nice|numactl|taskset|timeout|sudo)\b.*: )"
        r"(?:line \d+: |\d+: )?.*(?:not found|No such file or directory|Permission denied|"
        r"cannot execute).*)",
        "the program cannot be started: {what}",
    ),
    _start(
        K.BAD_CONFIG,
        r"(?P<what>^error: (?:Failed to (?!run)\w+|No solution found|Querying Python|"
        r"No virtual ).*|"
        r"^\w*(?:Environment\w*|Conda)\w*(?:Error|NotFound): .*|"
        r"^libnuma: Warning: .* out of range|^<\S+> is invalid$|"
        r"^exec \S+: exec format error|^no such service: .*|^no configuration file provided.*|"
        r"^(?:taskset|numactl|chrt|ionice|timeout|nsenter|sudo): (?!cannot set).*)",
        "the program cannot be started: {what}",
    ),
    _rule(
        K.BAD_CONFIG,
        r"(?P<what>[Ii]nvalid device ordinal.*)",
        "fewer GPUs are visible than the launch wants ({what}): look at CUDA_VISIBLE_DEVICES and "
        "the parallel sizes",
    ),
    _rule(
        K.TIMEOUT,
        r"Timed out waiting for engine core processes to start",
        "EngineCore did not start in time: VLLM_ENGINE_READY_TIMEOUT_S sets how long it may take",
    ),
)
# Before the exceptions are looked at …
RULES = (*_STORAGE, *_BUDGET, *_MEMORY, *_MODELS, *_DRAFTS, *_GPUS, *_BUILDS, *_TOOLS)
# … and after them: a program that failed for a reason that only its own line tells
LAST_RULES = (
    _rule(
        K.BAD_CONFIG,
        r"^Error: (?P<what>.+)",
        "the program cannot be started: {what}",
    ),
)
