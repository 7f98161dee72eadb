from dataclasses import dataclass
@dataclass(frozen=True)
class ReportConfig:
    images: int = 6
def run(out, config, *, seed):
    (out/"report").mkdir(exist_ok=True)
