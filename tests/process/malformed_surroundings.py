"""Malformed files, surroundings and environments, written by hand."""

from __future__ import annotations

DEEP = 20_000
# Noise is compared with pixels alone, and a constant stands beside them alone.
DINOV2 = [
    *("--features.extractor", "dinov2", "--features.pixel-constant", "0"),
    *("--transport.noise-weight", "0", "--consistency.coupled-by", "samples"),
]
# Contents of a settings file.
FILES: tuple[bytes, ...] = (
    *(b"train: [1, 2", b"train: {batch_size: 1", b"train: 'x", b'train: "\\q"', b"train: \xe9", b"\xff\xfe\x00\x01"),
    *(
        b"\x00",
        b"train:\x00",
        b"\x1b[31m: 1",
        b"- train\n- data\n",
        b"train",
        b"5",
        b"1e3",
        b"true",
        b"[]",
        b"''",
        b"@",
    ),
    *(
        b"%",
        b"`",
        b"train:\n\tbatch_size: 4",
        b"train:\n batch_size: 1\n   cell_size: 1",
        b"? [a]\n: b",
        b"? {a: b}\n: c",
    ),
    *(b"--- {}\n--- {}", b"seed: 1\n---\nseed: 2", b"...", b"%YAML 9.9\n---\nseed: 1", b"!!python/object:os.system {}"),
    *(
        b"seed: !!python/object/apply:os.system ['true']",
        b"seed: !!python/name:os.system",
        b"seed: !x 1",
        b"seed: !!int x",
    ),
    *(b"seed: !!binary '*'", b"seed: 2001-99-99", b"seed: 0x_", b"seed: 1:99:99999999999999999999", b"seed: *none"),
    *(b"seed: 1\nseed: 2", b"train: {cell_size: 1}\ntrain: {batch_size: 1}", b"run: {dir: a, dir: b}"),
    *(
        b"train:\n  batch_size: 8\n  batch-size: 8\n  cell_size: 8",
        b"run: &r\n  dir: *r\n",
        b"&a [*a]",
        b"&a {seed: *a}",
    ),
    *(b"run: {<<: [1]}", b"run: {<<: 5}", b"1: 2", b"null: 1", b"true: 1", b"1.5: 1", b"2001-01-01: 1", b"'': 1"),
    *(
        b"train: {1: 2}",
        b"train: {null: 2}",
        b"train: {'': 2}",
        b"train: {train: {train: 1}}",
        b"'train.batch_size': 4",
    ),
    *(
        b"[" * DEEP,
        b"{" * DEEP,
        b"a: " * 50,
        b"- " * DEEP,
        b"{a: " * 2000 + b"1" + b"}" * 2000,
        b"'" * 999,
        b"#" * 9 + b"\n5",
    ),
    b"seed: " + b"9" * 5000,
    b"seed: 0x" + b"f" * 50_000,
    b"seed: " + b"9" * 3_000_000,  # a file of megabytes
    b"\n".join(b"k%d: [%d, {a: b}]" % (i, i) for i in range(200_000)),
    # A billion laughs, as sequences and as mappings.
    b"a0: &a0 [x]\n" + b"\n".join(b"a%d: &a%d [%s]" % (i, i, b",".join([b"*a%d" % (i - 1)] * 9)) for i in range(1, 12)),
    b"run: &a0 {dir: x}\n"
    + b"\n".join(
        b"s%d: &a%d {%s}" % (i, i, b",".join(b"k%d: *a%d" % (k, i - 1) for k in range(9))) for i in range(1, 12)
    ),
    b"run:\n  dir: [&a0 [x]"
    + b"".join(b", &a%d [%s]" % (i, b",".join([b"*a%d" % (i - 1)] * 9)) for i in range(1, 12))
    + b"]",
)

# Settings that are valid one by one and invalid together, and words of the error.
TOGETHER: tuple[tuple[dict[str, str], tuple[str, ...]], ...] = (
    *(({"train.batch_size": b, "train.cell_size": c}, ("train.batch_size", "train.cell_size")) for b, c in
      (("100", "16"), ("1", "2"), ("31", "32"), ("999983", "2"), ("7", "3"), ("64", "63"))),
    *(({f"time.{stage}": pair}, (f"time.{stage}",)) for stage in ("stage1_range", "stage2_range") for pair in
      ("0.9,0.1", "0.5,0.5", "1,0", "0,0", "[1,1]", "1e-9,0")),
    ({"transport.geometry": "euclidean", "transport.scope": "full"}, ("geometry", "scope")),
    ({"transport.scope": "subset", "transport.geometry": "euclidean", "transport.dual": "persistent"},
     ("dual", "geometry")),
    *(({"transport.backend": "pot", **more}, ("backend",)) for more in (
        {"transport.dual": "persistent"}, {"transport.iterations": "fixed"}, {"generator.conditional": "true"})),
    ({"evaluation.num": "9"}, ("evaluation.num", "10")),
)  # fmt: skip

# Options of a run, and words of the error.
SURROUNDINGS: tuple[tuple[list[str], tuple[str, ...]], ...] = (
    *((["--run.dir", place], ("run.dir",)) for place in
      ("@/file", "@/file/run", "@/loop", "@/loop/run", "@/fifo", "@/socket", "/proc/run", "/dev/null",
          "/dev/null/run", "x" * 300)),
    *((["--run.dir", f"@/{name}"], ("run.dir",)) for name in
      ("lock-is-directory", "lock-is-fifo", "stats-is-directory", "tensorboard-is-file", "samples-is-file",
          "picture-is-directory",
       "config-is-directory", "checkpoints-is-file", "checkpoints-is-loop")),
    *((["--run.dir", f"@/{name}"], (name,)) for name in ("garbage", "stats-is-binary")),
    *((["--checkpoint.root", place], ("checkpoint.root",)) for place in
      ("@/file", "@/file/x", "@/loop", "@/fifo", "/proc/x", "x" * 300, "nope://x", "s3://b/x", "http://127.0.0.1:9/x",
          "github://x",
       "ftp://127.0.0.1:9/x", "zip://x", "reference://x", "://", "tar://x", "sftp://127.0.0.1:9/x")),
    *((["--checkpoint.upload-to", place], ("checkpoint.upload_to",)) for place in
      ("@/file", "@/loop", "/proc/x", "nope://x", "http://127.0.0.1:9/x", "github://x", "runs/digits/checkpoints")),
    *((["--data.source", "cifar10", *more], ("data.path",)) for more in (
        [], ["--data.path", "@/file"], ["--data.path", "@/file/x"], ["--data.path", "@/empty"], ["--data.path",
            "@/none"],
        ["--data.path", "@/loop"], ["--data.path", "x" * 300], ["--data.path", "@/fifo"], ["--data.path", "@/cut"],
        ["--data.path", "@/unpacked"], ["--data.path", "@/archive-is-directory"], ["--data.path", "/dev/null"])),
    *((["--data.source", "cifar10", "--data.download", "false", "--data.path", f"@/{name}"], ("data.path",)) for name in
      ("empty", "none", "cut", "unpacked", "archive-is-directory", "archive-is-fifo", "loop")),
    *((["--data.source", source, *more], ("data.path",))
        for source in ("folder", "zip", "parquet", "packed") for more in (
        [], ["--data.path", "@/none"], ["--data.path", "@/empty"], ["--data.path", "@/loop"], ["--data.path", "@/fifo"],
        ["--data.path", "x" * 300], ["--data.path", "@/file/x"], ["--data.path", "/dev/null"])),
    *((["--data.source", source, "--data.path", "@/file"], ("data.path",)) for source in ("zip", "parquet")),
    *((["--data.source", source, "--data.image-size", "16"], ("data.image_size",)) for source in ("digits", "cifar10")),
    *((["--features.cache", place], ("features.cache",)) for place in
      ("@/file", "@/file/x", "@/loop", "/proc/x", "@/fifo")),
    *((["--generator.pretrained", place], ("generator.pretrained",)) for place in
      ("@/file", "@/none", "@/empty", "@/fifo", "@/loop", "@/pickle", "@/weights.safetensors", "/dev/null", "x" * 300,
          "@/file/x",
       "@/tensors.pth", "/dev/zero")),
    *(([*DINOV2, "--features.weights", place], ("features.weights",)) for place in
      ("@/file", "@/none", "@/empty", "@/fifo", "@/loop", "@/pickle", "@/weights.safetensors", "/dev/null", "x" * 300,
          "@/file/x",
       "@/tensors.pth")),
    (DINOV2, ("vit_small_patch14_dinov2", "model.safetensors", "features.weights")),
    *((["--loss.lpips", "0.5", "--loss.lpips-trunk", place], ("loss.lpips",)) for place in
      ("@/file", "@/none", "@/empty", "@/fifo", "@/loop", "@/pickle", "@/weights.safetensors", "/dev/null", "x" * 300,
          "@/file/x",
       "@/tensors.pth", "/dev/zero")),
    (["--loss.lpips", "0.5"], ("loss.lpips_trunk", "vgg16-397923af.pth")),
    *((["--telemetry.prometheus-port", "9099", "--telemetry.prometheus-address", place],
        ("telemetry.prometheus_",)) for place in
      ("nonsense", "256.1.1.1", "x" * 300, "a..b", "8.8.8.8", "é", "[::1", "1.2.3.4:80", " ")),
    (["--telemetry.prometheus-port", "{port}"], ("telemetry.prometheus_port",)),
    *((["--loss.flow-scales", each], ("loss.flow_scales",)) for each in ("5", "64")),
    *((["--generator.channel-mult", each], ("generator.channel_mult",)) for each in ("1,1,1,1,1", "1," * 30 + "1")),
    (["--checkpoint.root", "hf://x"], ("checkpoints in hf://x cannot be listed",)),
    *((["--run.dir", "@/reference", "--train.batch-size", "96", "--train.cell-size", "16", *change], (word,))
        for change, word in (
        (["--generator.model-channels", "32"], "generator.model_channels"), (["--seed", "1"], "seed 0 -> 1"),
        (["--train.batch-size", "64"], "train.batch_size 96"), (["--data.flip", "false"], "data.flip"))),
)  # fmt: skip

WHOLE = {
    "RANK": "0",
    "WORLD_SIZE": "1",
    "LOCAL_RANK": "0",
    "LOCAL_WORLD_SIZE": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}
NO_COUNTS = ("", " ", "x", "-1", "1.5", "1e3", "0x1", "٣", "1_0", "nan", "9" * 30, "+1", "1 2")
# Variables that torchrun sets.
ENVIRONMENTS: tuple[dict[str, str | None], ...] = (
    *({**WHOLE, name: None} for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")),
    *({**WHOLE, name: each} for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE",
        "MASTER_PORT") for each in NO_COUNTS),
    *({**WHOLE, "MASTER_ADDR": each} for each in ("", " ")),
    *({**WHOLE, "MASTER_PORT": each} for each in ("0", "65536", "70000")),
    *({**WHOLE, **each} for each in (
        {"WORLD_SIZE": "0"}, {"RANK": "1"}, {"RANK": "5"}, {"RANK": "2", "WORLD_SIZE": "2"}, {"LOCAL_WORLD_SIZE": "0"},
        {"LOCAL_RANK": "1"}, {"LOCAL_RANK": "7"}, {"LOCAL_WORLD_SIZE": "2"}, {"LOCAL_WORLD_SIZE": "2",
            "LOCAL_RANK": "2"})),
    *({name: "0"} for name in ("RANK", "LOCAL_RANK")),
    *({name: "1"} for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")),
)  # fmt: skip
