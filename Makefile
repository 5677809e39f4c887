# Targets for those who carry on; README.md, "For those who carry on", says what each is for.
STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.8.2
BENCHSTAT = golang.org/x/perf/cmd/benchstat@v0.0.0-20260908200009-22c9c6c9d4da
GOVULNCHECK = golang.org/x/vuln/cmd/govulncheck@v1.8.0
SOAK = 60s
SEED = 0
COUNT = 6

.PHONY: run build test check fuzz vuln bench soak picture

run:
	go run .

build:
	go build -o proofofstake .

# -count=1: the end-to-end tests build the server by themselves, of which the test cache knows nothing.
test:
	go test -count=1 ./...

check:
	@unformatted=$$(gofmt -l .); if [ -n "$$unformatted" ]; then echo "not gofmt-ed: $$unformatted"; exit 1; fi
	go mod tidy -diff
	go vet ./...
	GOOS=darwin go vet ./...
	GOOS=windows go vet ./...
	go run $(STATICCHECK) ./...
	go test -race -count=1 ./...
	$(MAKE) fuzz

# Each fuzz target for some 5 s; a minimisation must not take longer than that. As often, and not as long: at the end of a
# time Go before 1.27 may fail without a reason (golang.org/issue/75804).
fuzz:
	go test -run '^$$' -fuzz FuzzTerminal -fuzztime 10000x -fuzzminimizetime 1s .
	go test -run '^$$' -fuzz FuzzReplay -fuzztime 5000x -fuzzminimizetime 1s .
	go test -run '^$$' -fuzz FuzzAsk -fuzztime 70000x -fuzzminimizetime 1s ./internal/lineconn
	go test -run '^$$' -fuzz FuzzLines -fuzztime 250000x -fuzzminimizetime 1s ./internal/linefile
	go test -run '^$$' -fuzz FuzzRecords -fuzztime 100000x -fuzzminimizetime 1s ./internal/draw

# It asks the database of known vulnerabilities, and so needs the network.
vuln:
	go run $(GOVULNCHECK) ./...

# Every side once, COUNT times over, so that all meet the same noise; benchstat sets them side by side.
bench:
	go test -run '^$$' -bench . -benchtime 100ms -count $(COUNT) . | tee bench.txt
	go test -run '^$$' -bench . -benchtime 5x -count $(COUNT) -timeout 30m ./internal/bench | tee -a bench.txt
	go run $(BENCHSTAT) -filter '.name:(Draw OR Replay OR VerifyDraws OR RoundEnd OR Announcement OR Proposals OR Broadcast)' -col '/side@(floor ours nats redis tutorial)' bench.txt
	go run $(BENCHSTAT) -filter '.name:Stuck' -col '/others@(read none stuck)' bench.txt
	go run $(BENCHSTAT) -filter '.name:Flood' -col /flooders bench.txt

soak:
	go test -count=1 -run TestSoak -timeout 0 -v ./internal/e2e -soak $(SOAK) -seed $(SEED)

picture:
	go run ./internal/picture
