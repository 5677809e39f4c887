# Targets for those who carry on; README.md, "For those who carry on", says what each is for.
STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.8.2
FUZZTIME = 5s
SOAK = 60s
SEED = 0

.PHONY: run build test check fuzz bench soak

run:
	go run .

build:
	go build -o proofofstake .

# -count=1: the end-to-end tests build the server by themselves, of which the test cache knows nothing.
test:
	go test -count=1 ./...

check:
	@unformatted=$$(gofmt -l .); if [ -n "$$unformatted" ]; then echo "not gofmt-ed: $$unformatted"; exit 1; fi
	go vet ./...
	GOOS=darwin go vet ./...
	GOOS=windows go vet ./...
	go run $(STATICCHECK) ./...
	go test -race -count=1 ./...
	$(MAKE) fuzz

# Each fuzz target for a short time; a minimisation must not take longer than that.
fuzz:
	go test -run '^$$' -fuzz FuzzTerminal -fuzztime $(FUZZTIME) -fuzzminimizetime 1s .
	go test -run '^$$' -fuzz FuzzReplay -fuzztime $(FUZZTIME) -fuzzminimizetime 1s .
	go test -run '^$$' -fuzz FuzzReadLine -fuzztime $(FUZZTIME) -fuzzminimizetime 1s ./internal/lineconn
	go test -run '^$$' -fuzz FuzzRead -fuzztime $(FUZZTIME) -fuzzminimizetime 1s ./internal/linefile
	go test -run '^$$' -fuzz FuzzRead -fuzztime $(FUZZTIME) -fuzzminimizetime 1s ./internal/flatjson

bench:
	go test -run '^$$' -bench . -benchtime 300ms .
	go run ./internal/bench

soak:
	go run ./internal/soak -for $(SOAK) -seed $(SEED)
