# SPDX-License-Identifier: Apache-2.0
# The commands of this project; .ci/run calls the same. `just` alone lists them.
# They use the current environment: pip install --group dev (pip >= 25.1).

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
core sanitizer="": (_compile sanitizer)
    ctest --test-dir build/core-{{ if sanitizer == "" { "plain" } else { sanitizer } }} --output-on-failure --no-tests=error --parallel {{ num_cpus() }}

_compile sanitizer="":
    cmake -S ipcbuf -B build/core-{{ if sanitizer == "" { "plain" } else { sanitizer } }} -G Ninja -DIPCBUF_SANITIZE={{sanitizer}}
    cmake --build build/core-{{ if sanitizer == "" { "plain" } else { sanitizer } }}

# The core's own tests on arm64, by an emulator. Debian: g++-aarch64-linux-gnu qemu-user
core-arm64 *args:
    cmake -S ipcbuf -B build/core-arm64 -G Ninja -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ '-DCMAKE_CROSSCOMPILING_EMULATOR=qemu-aarch64;-L;/usr/aarch64-linux-gnu'
    cmake --build build/core-arm64
    ctest --test-dir build/core-arm64 --output-on-failure --no-tests=error --parallel {{ num_cpus() }} {{args}}

# The heap against its model, any number of examples
heap-machine examples="200000":
    IPCBUF_EXAMPLES={{examples}} pytest tests/unit/test_heap_machine.py

# The protocols under Spin, each as it is and with each of its faults; release: --processes 4 --crashes 3
models *args:
    python tests/models/run.py {{args}}

# Attach to segments that somebody wrote over, so many of them; release: 100000000
fuzz runs="2000000":
    cmake -S ipcbuf -B build/core-address -G Ninja -DIPCBUF_SANITIZE=address
    cmake --build build/core-address --target fuzz_attach
    seq {{num_cpus()}} | xargs -P 0 -n 1 build/core-address/fuzz_attach tests/fuzz/corpus --runs $(( {{runs}} / {{num_cpus()}} )) --seed

# The same, guided by coverage; needs clang and its libFuzzer
fuzz-guided seconds="20":
    cmake -S ipcbuf -B build/core-fuzzer -G Ninja -DIPCBUF_SANITIZE=fuzzer -DCMAKE_CXX_COMPILER=clang++
    cmake --build build/core-fuzzer --target fuzz_attach
    mkdir -p build/corpus
    build/core-fuzzer/fuzz_attach -max_total_time={{seconds}} -max_len=300 -timeout=10 -detect_leaks=0 build/corpus tests/fuzz/corpus

# Faults seeded into a copy of the core, one at a time: the tests must notice each
mutants *args:
    python tests/stress/mutants.py {{args}}

# Short seeded runs that kill processes: those of every push
stress-short: _stress_programs
    build/core-plain/random_kills --kills 5000 --patience 300
    build/core-plain/random_kills --kills 500 --size 4 --workers 8 --patience 300
    IPCBUF_ROUNDS=200 pytest -n {{num_cpus()}} -m stress tests/stress/test_kill_rounds.py tests/stress/test_chaos.py tests/mp/test_executor_survival.py -k "not flat"

# Seeded runs that kill processes, most of an hour; writes docs/proof.md
stress *args: _proof_programs
    python tests/stress/report.py run ci
    pytest -m stress tests/stress {{args}}

# The long proofs, a night; goes on where it was interrupted, and writes docs/proof.md. For less: --minutes-each 5
release-proof *args: _proof_programs
    python tests/stress/report.py run release {{args}}

_stress_programs:
    cmake -S ipcbuf -B build/core-plain -G Ninja -DIPCBUF_SANITIZE=
    cmake --build build/core-plain --target random_kills many_processes test_crash_points test_single_step

_proof_programs: _stress_programs
    cmake --build build/core-plain --target relacy_ring_sound relacy_doorbell_sound relacy_owner_word_sound
    cmake --build build/core-plain --target relacy_hand_over_sound relacy_remote_free_sound relacy_sole_user_sound
    cmake -S ipcbuf -B build/core-address -G Ninja -DIPCBUF_SANITIZE=address
    cmake --build build/core-address --target fuzz_attach

# CPython's tests of process pools on both executors; for a Python that lacks them: --tests DIR
conformance-executor *args:
    python tests/conformance/executor.py --json docs/conformance-executor.json {{args}}

# Kill workers of busy executors, so many rounds in both modes; and the executor on dask, on joblib
stress-executor rounds="200":
    IPCBUF_ROUNDS={{rounds}} pytest -m stress tests/mp/test_executor_survival.py tests/mp/test_executor_dask.py tests/mp/test_joblib.py

# The benchmarks, standard library and ours interleaved
bench *args:
    python -m benchmarks run {{args}}
    python -m benchmarks report

# CPython's own tests of multiprocessing, on the standard library's classes and on ours; minutes of them
conformance *args:
    python tests/conformance/run.py --json docs/conformance.json --table docs/conformance.md {{args}}

# A part of them that changes from day to day
conformance-short:
    python tests/conformance/run.py --jobs {{num_cpus()}} --timeout 120 --part 10 --only '^WithProcessesTest(Queue|PoolW|Connection|Poll|PicklingConnections)|^Test(Wait|SimpleQueue|CloseFds|Initializers|PoolNotLeakOnFailure)|^OtherTest'

# A native channel against bare rings, in C++ and in Python
bench-native *args:
    cmake -S ipcbuf -B build/bench -G Ninja -DCMAKE_BUILD_TYPE=Release -DIPCBUF_BUILD_TESTS=OFF -DIPCBUF_BUILD_BENCHMARKS=ON
    cmake --build build/bench
    python benchmarks/bench_native.py {{args}}
    python -m benchmarks report

# Write the compiled module's stub anew
stub:
    python -m nanobind.stubgen -q -m ipcbuf._native -p ipcbuf/binding/stub.pat -o ipcbuf/_native.pyi

# The documentation as a website, build/site; any warning is an error. `just docs serve` shows it live
docs command="build":
    NO_MKDOCS_2_WARNING=1 mkdocs {{ if command == "build" { "build --strict" } else { command } }}

# The source distribution, and from it a wheel of the running Python for other machines; in dist/
wheels:
    rm -rf dist build/wheels
    python -m build --outdir build/wheels
    auditwheel repair --wheel-dir dist build/wheels/*.whl
    cp build/wheels/*.tar.gz dist
