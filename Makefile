# pywina: libwina (C), the `wina` program and the Python package.
#
#   make          the library and the program, in build/
#   make demo     everything from nothing to generated text (see README.md)
#   make test     all tests
#
# One C file = one object. A file whose name ends in an instruction set (_avx2.c, _avx512.c,
# _neon.c) is compiled with that set's flags; everything else runs on any processor of the family.

BUILD   ?= build
CC      ?= gcc
AR      ?= ar
CFLAGS  ?= -O2 -g
WARN    := -Wall -Wextra -Wshadow -Wconversion -Wno-sign-conversion -Wstrict-prototypes -Wvla
# Results must not depend on what the compiler fuses: a multiply-add is fused where we say so.
BASE    := -std=c11 -D_GNU_SOURCE -fPIC -fvisibility=hidden -ffp-contract=off -fno-math-errno \
           -pthread -Inative/include -Inative/src $(WARN)
LIBS    := -lm -pthread

ARCH    := $(shell $(CC) -dumpmachine | cut -d- -f1)
SRC     := $(wildcard native/src/*.c native/src/sparse/*.c native/src/cpu/*.c)
ifneq ($(ARCH),x86_64)
SRC     := $(filter-out %_avx2.c %_avx512.c,$(SRC))
endif
ifneq ($(ARCH),aarch64)
SRC     := $(filter-out %_neon.c,$(SRC))
endif
OBJ     := $(SRC:native/src/%.c=$(BUILD)/obj/%.o)
CLI_OBJ := $(patsubst native/cli/%.c,$(BUILD)/obj/cli/%.o,$(wildcard native/cli/*.c))
TESTS   := $(patsubst tests/native/%.c,$(BUILD)/tests/%,$(wildcard tests/native/test_*.c))

ISA_avx2   := -mavx2 -mfma -mf16c
ISA_avx512 := -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni -mfma -mf16c
ISA_neon   :=

.PHONY: all native test test-native test-python demo venv clean check-layout
all: native
native: $(BUILD)/lib/libwina.so $(BUILD)/bin/wina

$(BUILD)/obj/%.o: native/src/%.c
	@mkdir -p $(@D)
	$(CC) $(BASE) $(CFLAGS) $(ISA_$(lastword $(subst _, ,$*))) -MMD -MP -c $< -o $@

$(BUILD)/obj/cli/%.o: native/cli/%.c
	@mkdir -p $(@D)
	$(CC) $(BASE) $(CFLAGS) -MMD -MP -c $< -o $@

$(BUILD)/lib/libwina.a: $(OBJ)
	@mkdir -p $(@D)
	rm -f $@ && $(AR) rcs $@ $(OBJ)

$(BUILD)/lib/libwina.so: $(OBJ)
	@mkdir -p $(@D)
	$(CC) -shared $(CFLAGS) -Wl,-z,relro,-z,now -Wl,-z,defs $(OBJ) -o $@ $(LIBS)

$(BUILD)/bin/wina: $(CLI_OBJ) $(BUILD)/lib/libwina.a
	@mkdir -p $(@D)
	$(CC) $(CFLAGS) $(CLI_OBJ) $(BUILD)/lib/libwina.a -o $@ $(LIBS)

$(BUILD)/tests/%: tests/native/%.c tests/native/check.h $(BUILD)/lib/libwina.a
	@mkdir -p $(@D)
	$(CC) $(BASE) $(CFLAGS) -Itests/native -MMD -MP $< $(BUILD)/lib/libwina.a -o $@ $(LIBS)

test-native: $(TESTS)
	@set -e; for t in $(TESTS); do echo "== $$t"; $$t; done

clean:
	rm -rf $(BUILD)

-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)
