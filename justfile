# SPDX-License-Identifier: Apache-2.0
# The commands of this project; .ci/run calls the same. `just` alone lists them.
# They use the current environment: pip install --group dev .

_list:
    @{{ just_executable() }} --list --unsorted

# Format, lint, spelling and types
check:
    prek run --all-files
    mypy

# The Python tests, without the long ones
test *args:
    pytest -n auto {{args}}

# The core's own tests, without Python; sanitizer: thread or address
core sanitizer="":
    cmake -S ipcbuf -B build/core-{{ if sanitizer == "" { "plain" } else { sanitizer } }} -G Ninja -DIPCBUF_SANITIZE={{sanitizer}}
    cmake --build build/core-{{ if sanitizer == "" { "plain" } else { sanitizer } }}
    ctest --test-dir build/core-{{ if sanitizer == "" { "plain" } else { sanitizer } }} --output-on-failure --no-tests=error --parallel {{ num_cpus() }}

# The heap against its model, any number of examples
heap-machine examples="200000":
    IPCBUF_EXAMPLES={{examples}} pytest tests/unit/test_heap_machine.py

# Long seeded runs that kill processes: the figures of every push
stress *args: _stress_programs
    python tests/stress/report.py run ci
    pytest -m stress tests/stress {{args}}

# The long proofs, hours of them; goes on where it was interrupted, and writes docs/proof.md
release-proof *args: _stress_programs
    python tests/stress/report.py run release {{args}}

_stress_programs:
    cmake -S ipcbuf -B build/core-plain -G Ninja -DIPCBUF_SANITIZE=
    cmake --build build/core-plain --target random_kills many_processes test_crash_points test_single_step

# The benchmarks, standard library and ours interleaved
bench *args:
    python -m benchmarks {{args}}

# Write the compiled module's stub anew
stub:
    python -m nanobind.stubgen -q -m ipcbuf._native -p ipcbuf/binding/stub.pat -o ipcbuf/_native.pyi
