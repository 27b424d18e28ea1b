# pywina: libwina (C), the `wina` program and the Python package.
#
#   make          the library and the program, in build/
#   make demo     everything from nothing to generated text (see README.md)
#   make test     all tests
#   make test-page   the server's page in headless Chromium; needs chromium
#   make cuda     build/lib/libwina_cuda.so, the GPU backend; needs nvcc
#   make test-packaging   wheel and sdist from nothing
#   make lint     ruff, mypy, and clang-format if it is there
#   make fetch    the models that tests use, into the user's cache
#   make eval-full MODEL=NAME   everything that docs/method.md tabulates (hours, resumable)
#   make bench-peers   speed beside llama.cpp (docs/performance.md); BENCH="--quick" and the like
#   make test-avx512   the AVX-512 kernels on a processor without it: operations written out in C
#   make static   build/bin/wina-static, which needs no library
#   make asan ubsan tsan   the C tests, mutations and fuzz inputs under a sanitizer
#   make asan-python tsan-python   handles, threads and servers under one
#   make fuzz TIME=600     libFuzzer, that many seconds per target; needs clang
#   make test-mutations    55,000 small changes of a small model, under ASan and UBSan
#   make test-kills test-faults test-lifecycle   writers killed, calls failing, opening and closing
#   make tidy     clang-tidy, and gcc's warnings as errors
#   make install  library, header, program and pkg-config file below PREFIX (DESTDIR is put before)
#   make wheels   dist/*.whl for x86-64 and, with gcc-aarch64-linux-gnu, aarch64
#
# CROSS=aarch64-linux-gnu builds for another processor, in build-aarch64; tests are static then.
# PYTHON=python3.12 chooses the Python that .venv is made from; BUILD=dir builds elsewhere.
#
# One C file = one object. A file whose name ends in an instruction set (_avx2.c, _avx512.c,
# _neon.c) is compiled with that set's flags; everything else runs on any processor of the family.

ifdef CROSS
BUILD   ?= build-$(firstword $(subst -, ,$(CROSS)))
CC      := $(CROSS)-gcc
AR      := $(CROSS)-ar
STRIP   := $(CROSS)-strip
endif
BUILD   ?= build
CC      ?= gcc
AR      ?= ar
STRIP   ?= strip
CFLAGS  ?= -O2 -g
WARN    := -Wall -Wextra -Wshadow -Wconversion -Wstrict-prototypes -Wvla
# Results must not depend on what the compiler fuses: a multiply-add is fused where we say so.
BASE    := -std=c11 -D_GNU_SOURCE -fPIC -fvisibility=hidden -ffp-contract=off -fno-math-errno \
           -ffunction-sections -fdata-sections -fno-asynchronous-unwind-tables \
           -pthread -Inative/include -Inative/src $(WARN)
# What a release is built with besides; sanitizers want it empty.
HARDEN  ?= -U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=3 -fstack-protector-strong
BASE    += $(HARDEN)
LIBS    := -lm -pthread -ldl
RELRO   := -Wl,-z,relro,-z,now

# Programs that are linked with the library ask for this number: it changes when they must change.
ABI     := $(shell sed -n 's/^.define WINA_ABI_VERSION //p' native/include/wina.h)
VERSION := $(shell sed -n 's/^.define WINA_VERSION "\(.*\)"/\1/p' native/src/api.c)
PREFIX  ?= /usr/local

# Instruction sets by processor: files of the others are left out.
ARCH    := $(shell $(CC) -dumpmachine | cut -d- -f1)
ISAS_x86_64  := avx2 avxvnni avx512 avx512vnni
ISAS_aarch64 := neon dotprod i8mm
FOREIGN := $(filter-out $(ISAS_$(ARCH)),$(ISAS_x86_64) $(ISAS_aarch64))
SRC     := $(wildcard native/src/*.c native/src/sparse/*.c native/src/cpu/*.c)
SRC     := $(filter-out $(addprefix %_,$(addsuffix .c,$(FOREIGN))),$(SRC))
OBJ     := $(SRC:native/src/%.c=$(BUILD)/obj/%.o)
CLI_OBJ := $(patsubst native/cli/%.c,$(BUILD)/obj/cli/%.o,$(wildcard native/cli/*.c))
TESTS   := $(patsubst tests/native/%.c,$(BUILD)/tests/%,$(wildcard tests/native/test_*.c))

# Loops over weights that are no instruction set's own.
HOT        := dequant pack fill piece quantize_32 quantize_k sparse/norms cpu/attention cpu/project cpu/cpu
FAST       ?= -O3
# Checked copies of a few bytes in their inner loops made loading a third more instructions. Sizes are
# checked before these loops, and the sanitizers run them; stack protectors stay.
HOT_CHECKS := -U_FORTIFY_SOURCE
ISA_c      := $(FAST)
ISA_avx2   := $(FAST) -mavx2 -mfma -mf16c
ISA_avxvnni := $(ISA_avx2) -mavxvnni
ISA_avx512 := $(FAST) -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mf16c
ISA_avx512vnni := $(ISA_avx512) -mavx512vnni
# Scheduling before registers are given out makes the sums spill.
NEON       := $(FAST) -fno-schedule-insns
ISA_neon   := $(NEON)
ISA_dotprod := $(NEON) -march=armv8.2-a+dotprod
ISA_i8mm   := $(NEON) -march=armv8.2-a+dotprod+i8mm

# The Python side lives in .venv; what is installed there uses the library of this build.
PYTHON  ?= python3
VENV    ?= .venv
PIP     := $(VENV)/bin/python -m pip --disable-pip-version-check --quiet
USE     := PYWINA_LIBRARY=$(abspath $(BUILD)/lib/libwina.so) WINA_BIN=$(abspath $(BUILD)/bin/wina)
MODELS  := smollm2-135m qwen2.5-coder-0.5b
PYTEST  ?= -q

.PHONY: install wheels eval-full cuda cuda-tests cuda-emulated all native static tests test test-native test-avx512 test-aarch64 test-riscv64 test-quick-aarch64 \
        test-hostile asan ubsan tsan asan-python tsan-python test-mutations test-kills test-faults test-lifecycle tidy coverage fuzz \
        test-python test-page test-packaging test-server-load demo venv fetch lint clean check-layout bench-peers
all: native
native: $(BUILD)/lib/libwina.so $(BUILD)/bin/wina
tests: $(TESTS)

$(BUILD)/obj/%.o: native/src/%.c
	@mkdir -p $(@D)
	$(CC) $(BASE) $(CFLAGS) $(if $(filter $*,$(HOT)),$(FAST)) $(ISA_$(lastword $(subst _, ,$*))) \
	    $(if $(filter $*,$(HOT))$(ISA_$(lastword $(subst _, ,$*))),$(HOT_CHECKS)) \
	    -MMD -MP -c $< -o $@

$(BUILD)/obj/cli/%.o: native/cli/%.c
	@mkdir -p $(@D)
	$(CC) $(BASE) $(CFLAGS) -MMD -MP -c $< -o $@

$(BUILD)/lib/libwina.a: $(OBJ)
	@mkdir -p $(@D)
	rm -f $@ && $(AR) rcs $@ $(OBJ)

$(BUILD)/lib/libwina.so: $(OBJ) Makefile
	@mkdir -p $(@D)
	$(CC) -shared $(CFLAGS) $(RELRO) $(if $(findstring sanitize,$(CFLAGS)),,-Wl,-z,defs) \
	    -Wl,-soname,libwina.so.$(ABI) $(OBJ) -o $@ $(LIBS)

$(BUILD)/bin/wina: $(CLI_OBJ) $(BUILD)/lib/libwina.a
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(RELRO) $(CLI_OBJ) $(BUILD)/lib/libwina.a -o $@ $(LIBS)

$(BUILD)/bin/wina-static: $(CLI_OBJ) $(BUILD)/lib/libwina.a
	@mkdir -p $(@D)
	$(CC) -static $(CFLAGS) -Wl,--gc-sections $(CLI_OBJ) $(BUILD)/lib/libwina.a -o $@ $(LIBS)
	$(STRIP) $@

# musl makes the program half as large as a static glibc does.
MUSL    ?= $(if $(CROSS),,$(shell command -v musl-gcc))
ifeq ($(MUSL),)
static: $(BUILD)/bin/wina-static
else
static:
	$(MAKE) BUILD=$(BUILD)/musl CC=$(MUSL) MUSL= static
	@mkdir -p $(BUILD)/bin
	cp $(BUILD)/musl/bin/wina-static $(BUILD)/bin/wina-static
endif

$(BUILD)/tests/%: tests/native/%.c tests/native/check.h $(BUILD)/lib/libwina.a
	@mkdir -p $(@D)
	$(CC) $(BASE) $(CFLAGS) -Itests/native -MMD -MP $< $(BUILD)/lib/libwina.a -o $@ \
	    $(if $(CROSS),-static) $(LIBS)

# What programs are built with; a packager's DESTDIR is not part of any path in the files.
define PC
prefix=$(PREFIX)
includedir=$${prefix}/include
libdir=$${prefix}/lib

Name: wina
Description: Language models from GGUF files, dense or with activation sparsity
Version: $(VERSION)
Cflags: -I$${includedir}
Libs: -L$${libdir} -lwina
Libs.private: $(LIBS)
endef
export PC

install: native
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/include $(DESTDIR)$(PREFIX)/lib/pkgconfig
	install $(BUILD)/bin/wina $(DESTDIR)$(PREFIX)/bin/
	install -m 644 native/include/wina.h $(DESTDIR)$(PREFIX)/include/
	install -m 644 $(BUILD)/lib/libwina.a $(DESTDIR)$(PREFIX)/lib/
	install -m 755 $(BUILD)/lib/libwina.so $(DESTDIR)$(PREFIX)/lib/libwina.so.$(ABI)
	ln -sf libwina.so.$(ABI) $(DESTDIR)$(PREFIX)/lib/libwina.so
	echo "$$PC" > $(DESTDIR)$(PREFIX)/lib/pkgconfig/wina.pc

wheels: | $(VENV)/bin/python
	$(VENV)/bin/python tools/make_wheels.py

test-native: $(TESTS)
	@set -e; for t in $(TESTS); do echo "== $$t"; $$t; done

# ---- Hostile input (docs/security.md) ---------------------------------------------------------

# The n-th call of these fails, for every n.
FAULTS := malloc calloc realloc aligned_alloc posix_memalign strdup free mmap munmap open fstat pthread_create
comma := ,
WRAP   = $(addprefix -Wl$(comma)--wrap=,$(1))
$(BUILD)/tests/test_faults: LIBS += $(call WRAP,$(FAULTS))
$(BUILD)/tests/test_diskread: LIBS += $(call WRAP,syscall pread open mmap munmap nanosleep)
$(BUILD)/tests/test_split: LIBS += $(call WRAP,getrandom)

# Fuzz targets and mutations read "files" from memory.
MAPS    := $(call WRAP,wina_mapfile_open wina_mapfile_close wina_mapfile_release)
ENGINE  ?= tests/fuzz/replay.c
FUZZERS := load run tokenize config packed state
CORPUS  := tests/fuzz/corpus
TIME    ?= 600
FUZZ_BUILD := build-fuzz
$(BUILD)/tests/mutations: tests/fuzz/mutations.c tests/fuzz/harness.h $(BUILD)/lib/libwina.a
	@mkdir -p $(@D)
	$(CC) $(BASE) $(CFLAGS) -Itests/fuzz $< $(BUILD)/lib/libwina.a -o $@ $(MAPS) $(LIBS)

$(BUILD)/tests/fuzz_%: tests/fuzz/fuzz_%.c tests/fuzz/replay.c tests/fuzz/harness.h $(BUILD)/lib/libwina.a
	@mkdir -p $(@D)
	$(CC) $(BASE) $(CFLAGS) -Itests/fuzz $< $(ENGINE) $(BUILD)/lib/libwina.a \
	    -o $@ $(MAPS) $(LIBS)

# Every kept input, and one change in 40 of the small model: seconds.
test-hostile: $(BUILD)/tests/mutations $(FUZZERS:%=$(BUILD)/tests/fuzz_%)
	@set -e; for t in $(FUZZERS); do $(BUILD)/tests/fuzz_$$t $(CORPUS); done
	$(BUILD)/tests/mutations $(CORPUS)/good.gguf 40
	$(BUILD)/tests/mutations $(CORPUS)/mixture.gguf 80
	$(PYTHON) tests/fuzz/fuzz_request.py replay tests/fuzz/requests
	$(PYTHON) tests/fuzz/fuzz_request.py mutate 5000 tests/fuzz/requests

# FAST= so that hot files, too, are checked as written: -O3 drops and merges accesses before they are
# instrumented.
FLAGS_asan  := -fsanitize=address$(comma)undefined
FLAGS_ubsan := -fsanitize=undefined
FLAGS_tsan  := -fsanitize=thread
SANITIZED = $(MAKE) BUILD=build-$(1) HARDEN= FAST= CFLAGS="-O1 -g -DWINA_SANITIZED -fno-omit-frame-pointer -fno-sanitize-recover=all $(FLAGS_$(1))"
asan ubsan:
	$(call SANITIZED,$@) test-native test-hostile
tsan:
	$(call SANITIZED,$@) test-native

# The same from Python, which is not instrumented: handles, threads, servers, streams, bad files. Python
# keeps what it has to the end, so leaks are counted by test-lifecycle; a long quarantine would look
# like growth.
UNDER_asan = ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1:quarantine_size_mb=1 \
    LD_PRELOAD="$(shell $(CC) -print-file-name=libasan.so) $(shell $(CC) -print-file-name=libubsan.so)"
UNDER_tsan = TSAN_OPTIONS="exitcode=66 report_signal_unsafe=0 ignore_noninstrumented_modules=1 die_after_fork=0" \
    LD_PRELOAD=$(shell $(CC) -print-file-name=libtsan.so)
SANITIZED_TESTS = $(addprefix tests/python/test_,$(addsuffix .py,lifecycle determinism stream server \
    server_limits decode_batch)) $(SANITIZED_MORE)
asan-python: SANITIZED_MORE := tests/python/test_chat_families.py tests/bad/test_bad.py
asan-python tsan-python: %-python: native $(VENV)/.installed-dev
	$(call SANITIZED,$*) native
	PYWINA_LIBRARY=$(abspath build-$*/lib/libwina.so) WINA_BIN=$(abspath $(BUILD)/bin/wina) $(UNDER_$*) \
	    $(VENV)/bin/python -m pytest $(PYTEST) -p no:cacheprovider $(SANITIZED_TESTS)
test-mutations:
	$(call SANITIZED,asan) build-asan/tests/mutations
	build-asan/tests/mutations $(CORPUS)/good.gguf

# Lines and branches of the readers of files that C tests, kept inputs and bad files reach.
COVER := gguf gguf_value config vocab special bpe spm merge pretok pretokmatch tokenizer
COVER_FLAGS := -O1 -g -fprofile-instr-generate -fcoverage-mapping
coverage:
	@rm -rf build-cov/profile && mkdir -p build-cov/profile
	$(MAKE) CC=clang BUILD=build-cov HARDEN= CFLAGS="$(COVER_FLAGS)" tests build-cov/tests/mutations \
	    $(FUZZERS:%=build-cov/tests/fuzz_%)
	$(PYTHON) tests/bad/make_bad.py build-cov/bad
	@set -e; export LLVM_PROFILE_FILE=build-cov/profile/%p.raw; \
	for t in $(TESTS:$(BUILD)/%=build-cov/%); do case $$t in *kernels|*threads) ;; *) $$t >/dev/null;; esac; done; \
	for t in $(FUZZERS); do build-cov/tests/fuzz_$$t $(CORPUS) build-cov/bad; done; \
	build-cov/tests/mutations $(CORPUS)/good.gguf 40
	llvm-profdata merge -o build-cov/all.profdata build-cov/profile/*.raw
	llvm-cov report build-cov/tests/fuzz_load $(TESTS:$(BUILD)/%=-object build-cov/%) \
	    -instr-profile=build-cov/all.profdata $(COVER:%=native/src/%.c) 2>/dev/null

# Minutes each: 200 kills of every writer; faults at every n; 10,000 times open and close.
test-kills: native $(VENV)/.installed-dev
	$(USE) PYWINA_KILL_ROUNDS=200 $(VENV)/bin/python -m pytest -q -s tests/bad/test_kill.py
test-faults: native $(VENV)/.installed-dev $(BUILD)/tests/test_faults
	$(BUILD)/tests/test_faults
	$(USE) PYWINA_FAULT_STEP=1 $(VENV)/bin/python -m pytest -q -s tests/bad/test_faults.py
test-lifecycle: native $(VENV)/.installed-dev
	$(USE) PYWINA_LIFECYCLES=50000 $(VENV)/bin/python -m pytest -q tests/python/test_lifecycle.py

fuzz:
	@command -v clang >/dev/null || { echo "make fuzz needs clang with libFuzzer" >&2; exit 1; }
	$(MAKE) CC=clang BUILD=$(FUZZ_BUILD) HARDEN= ENGINE=-fsanitize=fuzzer \
	    CFLAGS="-O1 -g -fno-omit-frame-pointer -fno-sanitize-recover=all -fsanitize=address,undefined,fuzzer-no-link" \
	    $(FUZZERS:%=$(FUZZ_BUILD)/tests/fuzz_%)
	@set -e; for t in $(FUZZERS); do mkdir -p $(FUZZ_BUILD)/corpus-$$t; \
	    case $$t in packed) n=90000;; *) n=8192;; esac; \
	    $(FUZZ_BUILD)/tests/fuzz_$$t -max_total_time=$(TIME) -max_len=$$n -timeout=10 -rss_limit_mb=1024 \
	    -dict=tests/fuzz/gguf.dict -print_final_stats=1 -artifact_prefix=$(FUZZ_BUILD)/ \
	    $(FUZZ_BUILD)/corpus-$$t $(CORPUS); done
	@mkdir -p $(FUZZ_BUILD)/corpus-request; if $(VENV)/bin/python -c 'import atheris' 2>/dev/null; then \
	    $(VENV)/bin/python tests/fuzz/fuzz_request.py atheris -max_total_time=$(TIME) -print_final_stats=1 \
	    -dict=tests/fuzz/request.dict $(FUZZ_BUILD)/corpus-request tests/fuzz/requests; \
	else echo "atheris is not installed: requests are not fuzzed"; fi

# tests/native/avx512 has what the kernels use of AVX-512, a lane after the other.
EMULATED_512 := $(patsubst native/src/cpu/%.c,$(BUILD)/avx512/%.o,$(wildcard native/src/cpu/*_avx512.c \
                  native/src/cpu/*_avx512vnni.c)) $(BUILD)/avx512/detect.o
$(BUILD)/avx512/%.o: native/src/cpu/%.c
	@mkdir -p $(@D)
	$(CC) -Itests/native/avx512 $(BASE) -Wno-psabi $(CFLAGS) -O1 -g0 $(filter-out $(FAST),$(ISA_avx2)) $(if $(filter %vnni,$*),-DEMULATE_AVX512VNNI) \
	    -MMD -MP -c $< -o $@
$(BUILD)/avx512/detect.o: tests/native/avx512/detect.c
	@mkdir -p $(@D)
	$(CC) $(BASE) $(CFLAGS) -MMD -MP -c $< -o $@
$(BUILD)/avx512/test_kernels: $(BUILD)/tests/test_kernels $(EMULATED_512)
	$(CC) $(BASE) $(CFLAGS) -Itests/native tests/native/test_kernels.c $(EMULATED_512) $(BUILD)/lib/libwina.a -o $@ $(LIBS)
test-avx512: $(BUILD)/avx512/test_kernels
	$<

# Under QEMU: all C tests and 48 tokens, or what takes under a minute.
test-aarch64 test-riscv64: test-%: native
	$(USE) tools/test_emulated.sh $*
test-quick-aarch64: native
	$(USE) tools/test_emulated.sh aarch64 quick

# ---- CUDA ------------------------------------------------------------------------------------

# CUDA_ARCHS="90" builds for one GPU only, which is what to do while working on it.
NVCC       ?= nvcc
CUDA_ARCHS ?= 80 86 89 90
CUDA_LAST  := $(lastword $(CUDA_ARCHS))
CUDA_HOME  ?= /usr/local/cuda
CUDA_FLAGS := -O3 -std=c++17 -Xcompiler -fPIC,-fvisibility=hidden -Inative/include -Inative/src \
              $(foreach a,$(CUDA_ARCHS),-gencode arch=compute_$(a),code=sm_$(a)) \
              -gencode arch=compute_$(CUDA_LAST),code=compute_$(CUDA_LAST)
CUDA_OBJ   := $(patsubst native/src/%,$(BUILD)/obj/%.o,$(wildcard native/src/cuda/*.cu native/src/cuda/*.c))

cuda: $(BUILD)/lib/libwina_cuda.so

$(BUILD)/obj/cuda/%.cu.o: native/src/cuda/%.cu
	@mkdir -p $(@D)
	$(NVCC) $(CUDA_FLAGS) -MMD -MP -c $< -o $@

$(BUILD)/obj/cuda/%.c.o: native/src/cuda/%.c
	@mkdir -p $(@D)
	$(CC) $(BASE) $(CFLAGS) -isystem $(CUDA_HOME)/include -MMD -MP -c $< -o $@

$(BUILD)/lib/libwina_cuda.so: $(CUDA_OBJ)
	@mkdir -p $(@D)
	$(NVCC) -shared -cudart static -Xlinker -z,relro,-z,now $(CUDA_OBJ) -o $@

# Programs that need a GPU: tools/gpu_check.sh runs them.
CUDA_TESTS := $(patsubst tests/native/cuda/%.c,$(BUILD)/tests/%,$(wildcard tests/native/cuda/*.c))
cuda-tests: cuda $(CUDA_TESTS)
$(BUILD)/tests/%: tests/native/cuda/%.c tests/native/cuda/fake.h $(BUILD)/lib/libwina.a
	@mkdir -p $(@D)
	$(CC) $(BASE) $(CFLAGS) -isystem $(CUDA_HOME)/include -MMD -MP $< $(BUILD)/lib/libwina.a -o $@ $(LIBS)

# The kernels run by the CPU, to check their logic where there is no GPU; needs CUDA's headers.
EMULATE       := $(BUILD)/emulate
EMULATE_FLAGS := -O2 -g -fPIC -fvisibility=hidden -fno-strict-aliasing -DWINA_CUDA_EMULATE \
                 -Inative/include -Inative/src -Inative/src/cuda -Itests/native/cuda/emulate \
                 -isystem $(CUDA_HOME)/include -MMD -MP
EMULATE_OBJ   := $(patsubst %,$(EMULATE)/%.o,program.cu begin.cu batch.cu hidden.cu best.cu cache.c copyspeed.c angles.c cublas.c decode.c \
                  prompt.c record.c plugin.c profile.c upload.c emulate.cpp)

cuda-emulated: $(EMULATE)/libwina_cuda.so $(EMULATE)/libcublas_emulated.so $(BUILD)/tests/check_cuda
$(EMULATE)/%.cu.o: native/src/cuda/%.cu
	@mkdir -p $(@D)
	$(CXX) -std=c++17 -x c++ $(EMULATE_FLAGS) -include emulate.h -c $< -o $@
$(EMULATE)/%.cpp.o: tests/native/cuda/emulate/%.cpp
	@mkdir -p $(@D)
	$(CXX) -std=c++17 $(EMULATE_FLAGS) -c $< -o $@
$(EMULATE)/%.c.o: native/src/cuda/%.c
	@mkdir -p $(@D)
	$(CC) $(BASE) $(EMULATE_FLAGS) -c $< -o $@
$(EMULATE)/libwina_cuda.so: $(EMULATE_OBJ)
	$(CXX) -shared $(EMULATE_OBJ) -Wl,-rpath,'$$ORIGIN' -o $@
$(EMULATE)/libcublas_emulated.so: tests/native/cuda/emulate/cublas.c
	@mkdir -p $(@D)
	$(CC) $(BASE) $(EMULATE_FLAGS) -shared $< -o $@

# ---- Python ----------------------------------------------------------------------------------

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "pywina needs Python 3.11 or newer: make PYTHON=python3.12 ..." >&2; exit 1; }
	@# Debian splits venv's copy of pip off into python3-venv; an installed pip will do as well.
	$(PYTHON) -m venv $(VENV) || \
	    { $(PYTHON) -m venv --clear --without-pip $(VENV) && \
	      $(PYTHON) -m pip --python $@ install --quiet pip; } || \
	    { rm -rf $(VENV); echo "cannot make $(VENV): install python3-venv or python3-pip" >&2; exit 1; }

# Stamps: installing again is needed only when the project file changes.
$(VENV)/.installed: pyproject.toml tools/hatch_build.py | $(VENV)/bin/python native
	PYWINA_BUILD=$(BUILD) $(PIP) install --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	PYWINA_BUILD=$(BUILD) $(PIP) install --editable '.[dev]'
	@touch $@

venv: $(VENV)/.installed-dev

# On all cores, unless -j says otherwise.
demo:
	@$(MAKE) --no-print-directory $(if $(findstring jobserver,$(MAKEFLAGS)),,-j$(shell nproc)) \
	    native $(VENV)/.installed
	@$(USE) $(VENV)/bin/python -m pywina demo

fetch: native $(VENV)/.installed
	@$(USE) $(VENV)/bin/python -m pywina fetch $(MODELS)

# llama.cpp is built on first use, which takes a while; BENCH="--models 1b-Q4_0 --quick" is a start.
bench-peers: native $(VENV)/.installed-dev
	$(USE) $(VENV)/bin/python tools/bench_peers.py --setup-if-missing $(BENCH)

# The measurements of docs/method.md, resumable: make eval-full MODEL=smollm2-135m
eval-full: native $(VENV)/.installed
	@$(USE) tools/eval_full.sh $(MODEL)

test-python: native $(VENV)/.installed-dev
	$(USE) $(VENV)/bin/python -m pytest $(PYTEST)

# The page in a browser: $CHROMIUM, or chromium of $PATH; SHOTS=folder keeps pictures.
test-page: native $(VENV)/.installed-dev
	PYWINA_BUILD=$(BUILD) $(PIP) install --editable '.[browser]'
	$(USE) PYWINA_SHOTS=$(SHOTS) $(VENV)/bin/python -m pytest $(PYTEST) tests/python/test_page.py

# Wheel and sdist, built from nothing and run in empty environments: minutes.
test-packaging: native $(VENV)/.installed-dev
	$(USE) WINA_TEST_WHEELS=1 $(VENV)/bin/python -m pytest $(PYTEST) tests/python/test_packaging.py

# Many clients, slow ones, leaving ones; LOAD="--requests 10000 --overhead model.gguf"
test-server-load: native $(VENV)/.installed-dev
	$(USE) $(VENV)/bin/python tools/server_load.py $(LOAD)

check-layout: native | $(VENV)/bin/python
	$(VENV)/bin/python tools/check_layout.py . $(BUILD)

# The emulated program wants the model that the Python tests fetch.
test: test-native $(if $(filter x86_64,$(ARCH)),test-avx512) test-hostile check-layout test-python test-quick-aarch64

lint: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check pywina tools tests
	$(VENV)/bin/ruff format --check pywina tools tests
	$(VENV)/bin/mypy
	@if command -v clang-format >/dev/null; then \
	    clang-format --dry-run --Werror $$(git ls-files 'native/*.[ch]' 'tests/native/*.[ch]' 'tests/fuzz/*.[ch]'); \
	else echo "clang-format is not installed: C is not checked"; fi

# Bugs that compilers find: clang-tidy (.clang-tidy) over all but generated and vector code, and
# gcc's warnings, sign conversions among them, as errors over everything.
TIDY := $(filter-out %unicode_data.c %_avx2.c %_avxvnni.c %_avx512.c %_avx512vnni.c,$(SRC)) $(wildcard native/cli/*.c)
tidy:
	@command -v clang-tidy >/dev/null || { echo "make tidy needs clang-tidy" >&2; exit 1; }
	@set -e; for f in $(TIDY); do echo "$$f"; \
	    clang-tidy -quiet $$f -- $(filter-out -W%,$(BASE)) 2>/dev/null; done
	$(MAKE) BUILD=build-warn HARDEN= CFLAGS="-O1 -Werror" native tests

clean:
	rm -rf $(BUILD)

-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)
