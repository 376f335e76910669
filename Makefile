# Balance. Two commands do all the set-up: make demo, make test.

GO        ?= go
GOTOOL    := $(GO) tool -modfile=.tools/go.mod
VERSION   ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS   := -s -w -X main.version=$(VERSION)
FUZZTIME  ?= 20s
# Most tests of the program wait for nodes more than they work: four at a time.
WAITING   := -parallel 4 -timeout 20m
# The bindings of NVIDIA's library mention functions that it has deprecated.
export CGO_CFLAGS := -O2 -g -Wno-deprecated-declarations

.PHONY: build demo check test race e2e chaos bench bench-place bench-mesh bench-reach bench-models fuzz clean

build: ## the program: ./balance
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o balance ./cmd/balance

demo: build ## three nodes on this machine, one run from end to end
	./balance demo

test: ## all tests that need no root and no other program
	$(GO) test $(WAITING) ./...

race: ## the same under the race detector
	$(GO) test -race $(WAITING) ./...

check: ## format, vet, lint, layers, other systems, tidy modules
	@fmt=$$($(GOTOOL) gofumpt -l cmd mesh discovery exec proxy store tui examples); test -z "$$fmt" || { echo "gofumpt would change: $$fmt"; exit 1; }
	$(GO) vet ./...
	GOARCH=arm64 CGO_ENABLED=0 $(GO) vet $$(sh .tools/portable.sh)
	GOOS=darwin CGO_ENABLED=0 $(GO) vet $$(sh .tools/portable.sh)
	$(GOTOOL) golangci-lint run ./...
	$(GO) test -run 'TestLayers' ./cmd/balance
	$(GO) mod tidy -diff
	@for f in $$(git ls-files '*.sh' .ci/run); do bash -n "$$f" || exit 1; done

e2e: build ## the real program, several nodes at a time, in network namespaces too (root)
	BALANCE_REQUIRE=1 BALANCE_LAB=1 $(GO) test -count=1 $(WAITING) ./cmd/balance ./discovery ./mesh/... ./exec/cgroup ./exec/isolate ./exec/run
	BALANCE_CHAOS=100 $(GO) test -count=1 -timeout 10m -run TestChaos ./exec/run

chaos: ## 1,000 kills and pauses in mid-run, 200 with a full disk (root), 100,000 runs of one member (Linux)
	BALANCE_CHAOS=1000 $(GO) test -count=1 -timeout 120m -v -run 'TestChaos|TestQuota$$' ./exec/run

bench: build ## figures, beside what they are compared with
	$(GO) run ./cmd/bench -balance ./balance
	@echo; echo "Terminal UI with 100 nodes. Goals: a frame in 0.5 ms (500000 ns), 2 % of a core at 1 Hz (idle: btop 0.32 %, lazygit 0.40 %)."
	@$(GO) test -run '^$$' -bench 'Frame/100$$' ./tui | grep Benchmark
	@$(GO) test -run '^$$' -bench 'Live$$' -benchtime 3x ./tui | grep Benchmark
	@echo; echo "A run that writes 1 GiB as fast as it can. Goals: 6 MB of memory of its supervisor's own, what others write 2000 ms late at p99."
	@$(GO) test -run '^$$' -bench 'Flood' -benchtime 3x ./exec/run | grep Benchmark
	@echo; echo "A turn in line beside a member that asks without end. Goal: twice as long at p99 as without."
	@$(GO) test -run '^$$' -bench 'Quota' -benchtime 500x ./exec/run | grep Benchmark
	@echo; echo "Mesh: WireGuard over loopback, one TCP connection."
	@$(GO) test -run '^$$' -bench 'RTT|Throughput' ./mesh | grep Benchmark

bench-place: ## placement on the public traces in TRACES=DIR (docs/placement.md says where to get them)
	@test -n "$(TRACES)" || { echo "say where the traces are: make bench-place TRACES=DIR; docs/placement.md tells where to get them"; exit 2; }
	@$(GO) run ./cmd/placebench --nodes "$(TRACES)/openb_node_list_gpu_node.csv" --traces "$(TRACES)"
	@echo; echo "Many dispatchers, each on a view of its own."
	@$(GO) run ./cmd/placebench --nodes "$(TRACES)/openb_node_list_gpu_node.csv" --pods "$(TRACES)/openb_pod_list_default.csv" --seeds 42-44 --dispatchers 10,100 --stale 1s,5s,30s
	@echo; echo "The same where runs depart and others come."
	@$(GO) run ./cmd/placebench --nodes "$(TRACES)/openb_node_list_gpu_node.csv" --pods "$(TRACES)/openb_pod_list_default.csv" --seeds 42-44 --dispatchers 10,100 --stale 1s,5s,30s --churn
	@echo; echo "One decision. Goal: 2 ms among 10,000 machines (2000000 ns)."
	@$(GO) test -run '^$$' -bench Decide ./exec/place | grep Benchmark

bench-mesh: ## the mesh beside stock WireGuard and, with NEBULA=PATH, nebula; network namespaces of its own (Linux, root)
	$(GO) run ./mesh/bench -nebula "$(NEBULA)"

bench-reach: ## how soon packets pass to nodes that were started or have moved, or whose relay has died (root)
	@echo "Goals: start p95 150 ms; after the answer of a public node (after-pub) 30 ms; from the first answer to a direct path 100 ms;"
	@echo "roam p95 1000 ms; roam-silent p95 1500 ms; relay-dies p99 3000 ms. Echo requests pass every 20 ms."
	@BALANCE_LAB=1 $(GO) test -run '^$$' -bench 'Reach' -benchtime 20x ./cmd/balance | grep -E 'Benchmark|FAIL'

bench-models: ## what the gateway adds to an engine: time to the first token, throughput, memory of a stream
	@echo "Goals: 3 ms to the first token more than the engine on one machine, a round trip and 4 ms over the mesh; 128 KiB a stream."
	@$(GO) test -run '^$$' -bench 'Models' ./cmd/balance | grep Benchmark
	@$(GO) test -run '^$$' -bench . ./exec/gateway | grep Benchmark

fuzz: ## each fuzz target for FUZZTIME
	@sh .tools/fuzz.sh $(FUZZTIME)

clean:
	rm -f balance
