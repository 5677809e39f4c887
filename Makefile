# Targets for contributors. README.md, "Contributing", says what each one is for.
STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.8.2
BENCHSTAT = golang.org/x/perf/cmd/benchstat@v0.0.0-20260908200009-22c9c6c9d4da
GOVULNCHECK = golang.org/x/vuln/cmd/govulncheck@v1.8.0
NATS_SERVER = github.com/nats-io/nats-server/v2@v2.15.2
# The oldest Go that go.mod allows, and the newest.
VERSIONS = go1.25.0 go1.27.4
SOAK = 60s
SEED = 0
FAULTS = 0
COUNT = 6

.PHONY: run build test check fuzz versions wine qemu vuln bench soak picture

run:
	go run .

# Without cgo, so that the binary runs on machines with another C library, or none.
build:
	CGO_ENABLED=0 go build -o proofofstake .

# -count=1, because the test cache does not notice a change of the server that the end-to-end tests build.
test:
	go test -count=1 ./...

check:
	@unformatted=$$(gofmt -l .); if [ -n "$$unformatted" ]; then echo "not gofmt-ed: $$unformatted"; exit 1; fi
	go mod tidy -diff
	go vet ./...
	for version in $(VERSIONS); do GOTOOLCHAIN=$$version go vet ./... || exit; done
	for os in darwin windows; do GOOS=$$os go vet ./... && GOOS=$$os go build ./... || exit; done
	for os in freebsd openbsd netbsd dragonfly illumos; do GOOS=$$os go build ./... || exit; done
	GOOS=android GOARCH=arm64 go build ./...
	go run $(STATICCHECK) ./...
	go test -race -count=1 ./...
	$(MAKE) fuzz

# Takes about 10 s. The limit is a number of runs because Go before 1.27 may fail without a reason when a
# time limit ends the fuzzing (golang.org/issue/75804).
fuzz:
	go test -run '^$$' -fuzz Fuzz -fuzztime 70000x -fuzzminimizetime 1s ./internal/lineconn

# Tests with other versions of Go, which are downloaded.
versions:
	for version in $(VERSIONS); do GOTOOLCHAIN=$$version go test -count=1 ./... || exit; done

# Tests on Windows, as far as wine is Windows, and plays there. Needs wine, wine64, gcc-mingw-w64-x86-64 and netcat-openbsd.
wine:
	internal/e2e/wine.sh

# Tests on other processors: 386 without an emulator, and two with qemu-user, of which s390x is big-endian.
qemu:
	GOARCH=386 go test -count=1 $$(go list ./... | grep -v -e e2e -e bench)
	GOARCH=arm64 go test -count=1 -exec qemu-aarch64 $$(go list ./... | grep -v -e e2e -e bench)
	GOARCH=s390x go test -count=1 -exec qemu-s390x $$(go list ./... | grep -v -e e2e -e bench)

# Needs the network, to ask the database of known vulnerabilities.
vuln:
	go run $(GOVULNCHECK) ./...

# Runs all benchmarks of internal/bench once, then again, COUNT times in all. So the sides take turns, and noise hits all
# alike. bin/ is where nats-server is installed.
bench:
	GOBIN="$(CURDIR)/bin" go install $(NATS_SERVER)
	go test -run '^$$' -bench . -benchtime 100ms -count $(COUNT) . | tee bench.txt
	for i in $$(seq $(COUNT)); do \
		PATH="$(CURDIR)/bin:$$PATH" go test -run '^$$' -bench . -benchtime 5x -timeout 30m ./internal/bench || exit; \
		done | tee -a bench.txt
	go run $(BENCHSTAT) -filter '-.name:(Stalled OR Flood)' -col '/side@(baseline ours nats redis tutorial)' bench.txt
	go run $(BENCHSTAT) -filter .name:Stalled -col '/reading,/stalled' bench.txt
	go run $(BENCHSTAT) -filter .name:Flood -col /flooders bench.txt

# Plays at random for SOAK. SEED repeats the choices of an earlier run; 0 takes the seed from the clock. FAULTS=1 injects
# faults into system calls, with strace.
soak:
	go test -count=1 -run TestSoak -timeout 0 -v ./internal/e2e -soak $(SOAK) -seed $(SEED) -faults=$(FAULTS)

# Plays a game and draws the picture in README.md. Needs tmux and nc.
picture:
	internal/picture/picture.sh
