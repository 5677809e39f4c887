// Package bench holds the benchmarks of the server over real sockets. They are Go benchmarks
// (make bench, or go test -bench . ./internal/bench), run on Linux only, and set this server
// beside others: a floor, which does nothing but the sockets' work, the tutorial's way of doing
// it, nats-server and redis. README.md in this folder says what is measured and shows the figures.
package bench
