"""All benchmarks: `python -m benchmarks` (`make bench`). A few minutes on two cores that do nothing else."""

from benchmarks import (
    bench_evaluation,
    bench_gradient_step,
    bench_many_prompts,
    bench_prompt_batching,
    bench_ray_overhead,
    bench_refl_loop,
    bench_sweep_overhead,
)

if __name__ == "__main__":
    bench_evaluation.main()
    bench_gradient_step.main()
    bench_many_prompts.main()
    bench_prompt_batching.main()
    bench_ray_overhead.main()
    bench_refl_loop.main()
    bench_sweep_overhead.main()
