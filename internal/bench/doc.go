// Package bench has the benchmarks of the server over real sockets, on Linux only: this server beside a floor, which
// does nothing but the sockets' work, the tutorial's way of doing it, nats-server and redis. README.md in this folder
// says what is measured and shows the figures.
package bench
