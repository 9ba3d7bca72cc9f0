# ngx-llm: see README.md for what the targets are for.
#
#   make                the engine, the nginx module and the test programs
#   make demo [PORT=N]  installs what is missing, builds, starts and asks the demo model
#   make demo-stop      stops it
#   make check          installs what is missing, runs every test that needs no GPU
#   make check-long     the same with full counts
#   make fuzz           feeds the fuzz targets for FUZZ_SECONDS each
#   make soak           an hour of load on two engines and a Redis that has faults: SOAK_SECONDS=
#   make mutate         breaks guards one by one: their tests must fail
#   make module NGINX_SRC=DIR   the module against an nginx source tree
#   make install PREFIX= DESTDIR=
#   make SANITIZE=address,undefined …   in a build directory of its own
#   make CUDA=auto|1|0  the CUDA backend along with the rest: always, never, or (auto, the default)
#                       where there is a GPU beside its compiler, which takes minutes. CUDA_ARCHS
#                       are the GPUs it is for, "80 86 89 90a" for a release
#   make check-gpu, make bench-gpu      backend and kernels, on a machine with a GPU
#   make bundle         $(BUILD)/bundle: the engine with that backend and the demo model, for a
#                       machine that has a driver and no packages of ours
#
# Every room of the engine is one static archive, and a link names just the rooms that its arrows
# allow (doc/design.md, section 2): a forbidden call does not link.

SANITIZE ?=
BUILD ?= $(if $(SANITIZE),build/sanitize-$(subst $(comma),-,$(SANITIZE)),build)
comma := ,

CC = gcc
OPT ?= $(if $(SANITIZE),-O1,-O2)
CFLAGS ?= -g
WARN = -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wpointer-arith -Wvla $(if $(WERROR),-Werror)
# d*q - m*min must round twice (doc/design.md, section 5): no contraction unless a kernel says so
ALL_CFLAGS = -std=c11 -D_GNU_SOURCE -I. $(OPT) $(WARN) -ffp-contract=off -fno-strict-aliasing -fPIC -pthread \
	-fvisibility=hidden -MMD -MP $(SANITIZE_FLAGS) $(CFLAGS)
SANITIZE_FLAGS = $(if $(SANITIZE),-fsanitize=$(SANITIZE) -fno-omit-frame-pointer)
ALL_LDFLAGS = -pthread $(SANITIZE_FLAGS) $(LDFLAGS)

ROOMS = base ipc text model cache backend sched serve
SRCS_kernels = $(wildcard kernels/cpu/*.c)
$(foreach r,$(ROOMS),$(eval SRCS_$(r) = $$(wildcard engine/$(r)/*.c engine/$(r)/*/*.c)))
SRCS_backend := $(filter-out engine/backend/cuda%,$(SRCS_backend))

# what a room may link: its arrows
NEEDS_base =
NEEDS_ipc =
NEEDS_kernels =
NEEDS_text = base
NEEDS_model = base
NEEDS_cache = model base
NEEDS_backend = kernels model base
NEEDS_sched = cache text backend kernels model base
NEEDS_serve = sched cache text backend kernels model ipc base

# the module's files that know no nginx
ROOMS += params
SRCS_params = $(patsubst %,ngx_module/ngx_http_llm_%.c,json params fields lists prompt cursor lead keyline)
NEEDS_params = ipc

LIBS_ipc = -lcrypto
LIBS_text = -ljansson -lcrypto
LIBS_model = -ljansson -lcrypto -lm
LIBS_backend = -lm
LIBS_kernels = -lm
LIBS_cache = -lcrypto -lhiredis
LIBS_params = -ljansson
room_libs = $(sort $(foreach r,$(1) $(NEEDS_$(1)),$(LIBS_$(r))))
room_archives = $(foreach r,$(1) $(NEEDS_$(1)),$(BUILD)/lib$(r).a)

.PHONY: all engine clean
all: engine module tests $(BUILD)/fake-engine

engine: $(BUILD)/llm-engine

objects = $(patsubst %.c,$(BUILD)/obj/%.o,$(1))

define room_rule
$(BUILD)/lib$(1).a: $(call objects,$(SRCS_$(1)))
	@mkdir -p $$(@D)
	@rm -f $$@
	$(AR) rcs $$@ $$^
endef
$(foreach r,$(ROOMS) kernels,$(eval $(call room_rule,$(r))))

# kernels that need an instruction set name it in their file: the rest of the binary runs everywhere
ISA_avx2 = -mavx2 -mfma -mf16c
ISA_avx512 = -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx2 -mfma -mf16c
isa = $(foreach i,avx2 avx512,$(if $(filter %_$(i).c,$(1)),$(ISA_$(i))))

$(BUILD)/obj/kernels/%.o: OPT = $(if $(SANITIZE),-O1,-O3)
$(BUILD)/obj/%.o: %.c
	@mkdir -p $(@D)
	$(CC) $(ALL_CFLAGS) $(call isa,$<) -c $< -o $@

SRCS_cmd = $(wildcard engine/cmd/*.c)
$(BUILD)/llm-engine: $(call objects,$(SRCS_cmd)) $(call room_archives,serve)
	$(CC) $(ALL_LDFLAGS) $^ -o $@ $(call room_libs,serve)

# checks recorded results (t/golden.h) through a backend
$(BUILD)/llm-golden: $(BUILD)/obj/t/golden.o $(call room_archives,backend)
	$(CC) $(ALL_LDFLAGS) $^ -o $@ $(call room_libs,backend)

# speaks the engine's side of the ABI by script (t/fake/main.c), for the module's tests
$(BUILD)/fake-engine: $(call objects,$(wildcard t/fake/*.c)) $(BUILD)/libipc.a $(BUILD)/libbase.a
	$(CC) $(ALL_LDFLAGS) $^ -o $@ -ljansson -lcrypto

# t/unit/ROOM_thing.c is a test of that room, linked with it and what it may use, nothing else
UNIT = $(patsubst t/unit/%.c,$(BUILD)/t/%,$(wildcard t/unit/*_*.c))
.PHONY: tests
tests: $(UNIT) $(BUILD)/llm-golden $(BUILD)/t/hold_parse.so $(BUILD)/t/old/llm_backend_cuda.so
define unit_rule
$(BUILD)/t/$(1): $(BUILD)/obj/t/unit/$(1).o $(call room_archives,$(firstword $(subst _, ,$(1))))
	@mkdir -p $$(@D)
	$(CC) $(ALL_LDFLAGS) $$^ -o $$@ $(call room_libs,$(firstword $(subst _, ,$(1))))
endef
$(foreach t,$(notdir $(UNIT)),$(eval $(call unit_rule,$(t))))

# t/fuzz/ROOM_thing.c is a fuzz target, linked as a test of that room: fed by libFuzzer, or what is
# in its corpus alone
FUZZ = $(patsubst t/fuzz/%.c,%,$(wildcard t/fuzz/*_*.c))
FUZZ_SECONDS = 60
tests: $(FUZZ:%=$(BUILD)/fuzz/%)
define fuzz_rule
$(BUILD)/fuzz/$(1): $(BUILD)/obj/t/fuzz/$(1).o $(if $(LIBFUZZER),,$(BUILD)/obj/t/fuzz/replay.o) \
		$(call room_archives,$(firstword $(subst _, ,$(1)))) $(if $(LIBFUZZER),,$(BUILD)/libbase.a)
	@mkdir -p $$(@D)
	$(CC) $(ALL_LDFLAGS) $(if $(LIBFUZZER),-fsanitize=fuzzer) $$^ -o $$@ $(call room_libs,$(firstword $(subst _, ,$(1))))
endef
$(foreach f,$(FUZZ),$(eval $(call fuzz_rule,$(f))))

# What is found stays in $(BUILD)/fuzz-clang: inputs that reach new code in found/NAME, those that
# end in a failure beside it.
.PHONY: fuzz
fuzz: fuzz-set-up
	set -e; for target in $(FUZZ); do dir=$(BUILD)/fuzz-clang/found/$$target; mkdir -p $$dir; \
		UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 $(BUILD)/fuzz-clang/fuzz/$$target \
			-max_total_time=$(FUZZ_SECONDS) -max_len=65536 -print_final_stats=1 \
			-artifact_prefix=$(BUILD)/fuzz-clang/$$target- $$dir t/fuzz/corpus/$$target; done

.PHONY: fuzz-set-up
fuzz-set-up:
	@tools/packages fuzz build fuzz
	@$(MAKE) -s $(JOBS) CC=clang SANITIZE=fuzzer-no-link,address,undefined LIBFUZZER=1 \
		BUILD=$(BUILD)/fuzz-clang $(FUZZ:%=$(BUILD)/fuzz-clang/fuzz/%)

# goes into nginx by LD_PRELOAD (t/http_parse.t)
$(BUILD)/t/hold_parse.so: $(BUILD)/obj/t/lib/hold_parse.o
	@mkdir -p $(@D)
	$(CC) $(ALL_LDFLAGS) -shared $^ -o $@ -ljansson

# opened by t/unit/backend_device.c
$(BUILD)/t/old/llm_backend_cuda.so: $(BUILD)/obj/t/lib/old_backend.o
	@mkdir -p $(@D)
	$(CC) $(ALL_LDFLAGS) -shared $^ -o $@
$(BUILD)/t/backend_device: | $(BUILD)/t/old/llm_backend_cuda.so

# --- the nginx module ---

# Debian's nginx-dev, which says how the installed nginx was configured, or any source tree. It is
# built from inside a directory of links to it, by relative paths: nginx's makefiles know no path
# with a space in it.
NGINX_SRC = /usr/share/nginx/src
NGX_OBJ = $(BUILD)/nginx
NGX_FLAGS = if test -e conf_flags; then . ./conf_flags; else NGX_CONF_FLAGS=(--with-compat --with-threads \
	--with-http_ssl_module --with-http_v2_module); fi;

.PHONY: module FORCE
module: $(BUILD)/ngx_http_llm_module.so

# a new file for a worker that has the old one mapped
$(BUILD)/ngx_http_llm_module.so: $(wildcard ngx_module/* engine/ipc/*.[ch]) $(NGX_OBJ)/configured
	$(MAKE) -C $(NGX_OBJ)/src -f ../obj/Makefile modules
	cp $(NGX_OBJ)/obj/$(@F) $@.part && mv $@.part $@

$(NGX_OBJ)/configured: config $(NGX_OBJ)/source
	@test -d '$(NGINX_SRC)/auto' || { echo 'make module: no nginx source tree: NGINX_SRC=$(NGINX_SRC)'; exit 1; }
	@rm -rf $(NGX_OBJ)/src && mkdir -p $(NGX_OBJ)/src $(NGX_OBJ)/obj
	@ln -s "$$(realpath '$(NGINX_SRC)')"/* $(NGX_OBJ)/src
	here="$$(realpath --relative-to=$(NGX_OBJ)/src .)" && cd $(NGX_OBJ)/src && \
	bash -c '$(NGX_FLAGS) $$(test -x configure && echo ./configure || echo auto/configure) \
		"$${NGX_CONF_FLAGS[@]}" --with-cc-opt="-g $(OPT) $(SANITIZE_FLAGS) $(CFLAGS)" \
		--with-ld-opt="$(SANITIZE_FLAGS) $(LDFLAGS)" --add-dynamic-module="$$1" --builddir=../obj' configure "$$here" \
		>../configure.log || { tail ../configure.log; exit 1; }
	touch $@

# another NGINX_SRC than the last time configures anew
$(NGX_OBJ)/source: FORCE
	@mkdir -p $(@D)
	@echo '$(NGINX_SRC)' | cmp -s - $@ || echo '$(NGINX_SRC)' >$@

# What is committed as .xz, unpacked for the tests: t/data under $(BUILD)/data, t/golden under
# $(BUILD)/golden. A test program finds the build directory in $LLM_BUILD.
PACKED := $(shell find t/data t/golden -name '*.xz' 2>/dev/null)
.PHONY: test-data
test-data: $(patsubst t/%.xz,$(BUILD)/%,$(PACKED)) $(patsubst t/%,$(BUILD)/%,$(wildcard t/golden/*/config.json))
$(BUILD)/%: t/%.xz
	@mkdir -p $(@D)
	xz -dc $< > $@.part && mv $@.part $@
$(BUILD)/golden/%/config.json: t/golden/%/config.json
	@mkdir -p $(@D)
	cp $< $@

# t/bench/ROOM_thing.c prints figures, linked as a test of that room: make bench-ROOM_thing;
# t/bench/edge.pl and t/bench/status.pl take the worker's, in an nginx: make bench-edge
define bench_rule
$(BUILD)/bench/$(1): $(BUILD)/obj/t/bench/$(1).o $(call room_archives,$(firstword $(subst _, ,$(1))))
	@mkdir -p $$(@D)
	$(CC) $(ALL_LDFLAGS) $$^ -o $$@ $(call room_libs,$(firstword $(subst _, ,$(1))))
.PHONY: bench-$(1)
bench-$(1): $(BUILD)/bench/$(1) test-data
	LLM_BUILD=$(BUILD) $$<
endef
$(foreach b,ipc $(basename $(notdir $(wildcard t/bench/*_*.c))),$(eval $(call bench_rule,$(b))))

$(BUILD)/bench/eventfd: $(BUILD)/obj/t/bench/eventfd.o
	@mkdir -p $(@D)
	$(CC) $(ALL_LDFLAGS) $^ -o $@
.PHONY: bench-audit
bench-audit: engine module
	LLM_BUILD=$(BUILD) t/bench/audit.pl

.PHONY: bench-keys
bench-keys: $(BUILD)/fake-engine module
	LLM_BUILD=$(BUILD) t/bench/keys.pl

.PHONY: bench-demo
bench-demo: engine module
	LLM_BUILD=$(BUILD) t/bench/demo.pl

.PHONY: bench-edge
bench-edge: $(BUILD)/bench/eventfd $(BUILD)/fake-engine module
	LLM_BUILD=$(BUILD) t/bench/edge.pl

.PHONY: bench-overload
bench-overload: engine module
	LLM_BUILD=$(BUILD) t/bench/overload.pl

.PHONY: bench-status
bench-status: $(BUILD)/fake-engine module
	LLM_BUILD=$(BUILD) t/bench/status.pl

.PHONY: bench-limits
bench-limits: $(BUILD)/fake-engine module
	LLM_BUILD=$(BUILD) t/bench/limits.pl

# --- the GPU ---

CUDA_HOME = /usr/local/cuda
CUDA_ARCHS = 90a
NVCC = $(CUDA_HOME)/bin/nvcc
NVCC_FLAGS = -O3 -std=c++17 -I. -lineinfo $(foreach a,$(CUDA_ARCHS),-gencode arch=compute_$(a),code=sm_$(a))
CUDA_LIBS = -L$(CUDA_HOME)/lib64 -lcudart_static -lstdc++ -ldl -lrt -lm

$(BUILD)/libkernels_cuda.a: $(patsubst %.cu,$(BUILD)/obj/%.cu.o,$(wildcard kernels/cuda/*.cu))
	@rm -f $@
	$(AR) rcs $@ $^
$(BUILD)/obj/%.cu.o: %.cu
	@mkdir -p $(@D)
	$(NVCC) $(NVCC_FLAGS) -MMD -MP -MF $(@:.o=.d) -c $< -o $@

# t/gpu/*.c are tests, some against the CPU's kernels; t/bench/gpu/*.c print figures
GPU_TESTS = $(patsubst t/gpu/%.c,$(BUILD)/t/gpu/%,$(filter-out t/gpu/faults.c,$(wildcard t/gpu/*.c)))
GPU_BENCHES = $(patsubst t/bench/gpu/%.c,$(BUILD)/bench/gpu/%,$(wildcard t/bench/gpu/*.c))
$(BUILD)/obj/t/gpu/%.o $(BUILD)/obj/t/bench/gpu/%.o: CFLAGS += -isystem $(CUDA_HOME)/include
$(GPU_TESTS) $(GPU_BENCHES): $(BUILD)/%: $(BUILD)/libkernels_cuda.a $(BUILD)/libkernels.a
	@mkdir -p $(@D)
	$(CC) $(ALL_LDFLAGS) $(filter %.o,$^) $(filter %.a,$^) -o $@ $(CUDA_LIBS)
$(GPU_TESTS): $(BUILD)/t/gpu/%: $(BUILD)/obj/t/gpu/%.o
$(GPU_BENCHES): $(BUILD)/bench/gpu/%: $(BUILD)/obj/t/bench/gpu/%.o

# the backend, which the engine opens; everything but the driver is in it
CUDA_OBJECTS = $(call objects,$(wildcard engine/backend/cuda*.c))
$(CUDA_OBJECTS): CFLAGS += -isystem $(CUDA_HOME)/include
$(BUILD)/llm_backend_cuda.so: $(CUDA_OBJECTS) $(BUILD)/libkernels_cuda.a $(call room_archives,backend)
	$(CC) $(ALL_LDFLAGS) -shared -static-libgcc -Wl,--exclude-libs,ALL,-z,defs $^ -o $@ $(subst -lstdc++,-l:libstdc++.a,$(CUDA_LIBS))

# that backend with calls of CUDA's that fail
WRAPPED = $(shell grep -o '^WRAP.cuda[A-Za-z0-9]*' t/gpu/faults.c | cut -c6-)
$(BUILD)/obj/t/gpu/faults.o: CFLAGS += -isystem $(CUDA_HOME)/include
$(BUILD)/t/gpu/faults: $(BUILD)/obj/t/gpu/faults.o $(CUDA_OBJECTS) $(BUILD)/libkernels_cuda.a \
		$(call room_archives,backend)
	@mkdir -p $(@D)
	$(CC) $(ALL_LDFLAGS) $(patsubst %,-Wl$(comma)--wrap=%,$(WRAPPED)) $^ -o $@ \
		$(call room_libs,backend) $(CUDA_LIBS)

# tests of backends that run on any
BACKEND_TESTS = $(addprefix $(BUILD)/t/,backend_cpu backend_numerics backend_alone sched_deterministic)
ENGINE_TESTS = $(patsubst %,t/%.t,golden engine_demo engine_prefix engine_requests)

.PHONY: gpu check-gpu bench-gpu
gpu: $(BUILD)/llm_backend_cuda.so $(GPU_TESTS) $(BUILD)/t/gpu/faults $(GPU_BENCHES)
check-gpu: gpu engine module $(BACKEND_TESTS) $(BUILD)/llm-golden test-data
	prove --timer --failures $(GPU_TESTS) $(BUILD)/t/gpu/faults
	LLM_CUDA_MMA=1 prove --timer --failures $(BUILD)/t/gpu/many
	LLM_BUILD=$(BUILD) LLM_DEVICE=cuda prove --timer --failures $(BACKEND_TESTS)
	LLM_DEVICE=cuda t/run $(BUILD) $(ENGINE_TESTS)
	set -e; for tool in memcheck racecheck initcheck; do for test in $(GPU_TESTS); do \
		echo "$$tool $$test"; compute-sanitizer --tool $$tool --error-exitcode 1 $$test 4 >$$test.log || \
			{ cat $$test.log; exit 1; }; done; done
bench-gpu: $(GPU_BENCHES)
	set -e; for bench in $^; do $$bench; done

CUDA = auto
ifeq ($(CUDA),auto)
WITH_CUDA = $(if $(wildcard $(NVCC)),$(wildcard /dev/nvidiactl))
else
WITH_CUDA = $(filter 1,$(CUDA))
endif
all: $(if $(WITH_CUDA),gpu)

# what a distribution without our packages lacks is linked in
BUNDLE = $(BUILD)/bundle
static_libs = $(patsubst -l%,-l:lib%.a,$(filter-out -lm,$(1))) -lm
.PHONY: bundle
bundle: $(BUNDLE)/llm-engine $(BUNDLE)/llm-golden $(BUILD)/llm_backend_cuda.so
	cp $(BUILD)/llm_backend_cuda.so $(BUNDLE)
	rm -rf $(BUNDLE)/demo && cp -r models/demo $(BUNDLE)/demo
$(BUNDLE)/llm-engine: $(call objects,$(SRCS_cmd)) $(call room_archives,serve)
	@mkdir -p $(@D)
	$(CC) $(ALL_LDFLAGS) $^ -o $@ $(call static_libs,$(call room_libs,serve))
$(BUNDLE)/llm-golden: $(BUILD)/obj/t/golden.o $(call room_archives,backend)
	@mkdir -p $(@D)
	$(CC) $(ALL_LDFLAGS) $^ -o $@ $(call static_libs,$(call room_libs,backend))

# --- demo ---

PORT = 8080
# as many jobs as processors, unless the caller said how many
JOBS = $(if $(filter -j% --jobserver%,$(MAKEFLAGS)),,-j$(shell nproc))

.PHONY: demo demo-stop
demo:
	@tools/demo check-port $(BUILD) $(PORT)
	@tools/packages demo build demo
	@echo building the engine and the module
	@$(MAKE) -s $(JOBS) engine module
	@tools/demo start $(BUILD) $(PORT)

demo-stop:
	@tools/demo stop $(BUILD)

# --- tests ---

# one run, with t/run's environment: make check TESTS=t/http_errors.t
TESTS =

.PHONY: check check-long check-set-up mutate
check: check-set-up
	@LLM_SANITIZE=$(SANITIZE) t/run $(BUILD) $(TESTS)

check-long: check-set-up
	@LLM_SANITIZE=$(SANITIZE) LLM_LONG=1 t/run $(BUILD) $(TESTS)

SOAK_SECONDS = 3600
.PHONY: soak
soak: check-set-up
	@LLM_SANITIZE=$(SANITIZE) LLM_LONG=1 LLM_SOAK=$(SOAK_SECONDS) t/run $(BUILD) $(wildcard t/soak_*.t)

check-set-up:
	@tools/packages check build check
	@$(MAKE) -s $(JOBS) all test-data $(BUILD)/venv/requirements.txt

$(BUILD)/venv/requirements.txt: t/requirements.txt
	t/venv $(@D)

mutate:
	@tools/packages mutate build check mutate
	t/mutate $(BUILD) $(MUTATIONS)

# --- installation ---

PREFIX = /usr/local
SYSCONFDIR = $(if $(filter /usr,$(PREFIX)),/etc,$(PREFIX)/etc)
INSTALL = install

# an engine's configuration that is there already stays as it is
.PHONY: install
install: engine module
	$(INSTALL) -D $(BUILD)/llm-engine '$(DESTDIR)$(PREFIX)/bin/llm-engine'
	$(if $(wildcard $(BUILD)/llm_backend_cuda.so),$(INSTALL) -D -m 644 $(BUILD)/llm_backend_cuda.so \
		'$(DESTDIR)$(PREFIX)/lib/llm-engine/llm_backend_cuda.so')
	$(INSTALL) -D -m 644 $(BUILD)/ngx_http_llm_module.so \
		'$(DESTDIR)$(PREFIX)/lib/nginx/modules/ngx_http_llm_module.so'
	$(INSTALL) -d '$(DESTDIR)$(PREFIX)/lib/systemd/system'
	sed -e 's|/usr/bin/|$(PREFIX)/bin/|' -e 's|/usr/share/|$(PREFIX)/share/|' \
		-e 's|/etc/|$(SYSCONFDIR)/|' conf/llm-engine.service \
		>'$(DESTDIR)$(PREFIX)/lib/systemd/system/llm-engine.service'
	$(INSTALL) -d '$(DESTDIR)$(SYSCONFDIR)'
	test -e '$(DESTDIR)$(SYSCONFDIR)/llm-engine.conf' || \
		sed 's|/usr/share/|$(PREFIX)/share/|' conf/llm-engine.conf \
		>'$(DESTDIR)$(SYSCONFDIR)/llm-engine.conf'
	$(INSTALL) -d '$(DESTDIR)$(PREFIX)/share/llm-engine/models/demo'
	$(INSTALL) -m 644 models/demo/* '$(DESTDIR)$(PREFIX)/share/llm-engine/models/demo'
	$(INSTALL) -d '$(DESTDIR)$(PREFIX)/share/doc/ngx-llm'
	$(INSTALL) -m 644 README.md CHANGES LICENSE conf/demo.conf conf/llm-limits.conf conf/llm.keys \
		conf/llm-log.conf conf/nodes.conf conf/redis.conf \
		'$(DESTDIR)$(PREFIX)/share/doc/ngx-llm'

clean:
	@tools/demo stop $(BUILD)
	rm -rf build $(BUILD)

-include $(shell find $(BUILD)/obj -name '*.d' 2>/dev/null)
