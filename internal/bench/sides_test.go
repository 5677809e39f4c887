//go:build linux

package bench

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"
	"unsafe"
)

const (
	self       = "/proc/self/exe" // this program
	natsServer = "github.com/nats-io/nats-server/v2@v2.15.2"
)

// TestMain runs the tests, or what a process that they start is to be.
func TestMain(m *testing.M) {
	role := os.Getenv("BENCH_ROLE")
	roles := map[string]func() error{"floor": runFloor, "tutorial": runTutorial, "flood": runFlood}
	if roles[role] == nil {
		os.Exit(run(m))
	}
	fmt.Fprintf(os.Stderr, "%s: %v\n", role, roles[role]())
	os.Exit(1)
}

// run runs everything -count times from beginning to end. By itself, go test repeats each
// benchmark before it comes to the next one; so the sides take turns.
func run(m *testing.M) (code int) {
	flag.Parse()
	times := flag.Lookup("test.count").Value.(flag.Getter).Get().(uint)
	if err := errors.Join(flag.Set("test.count", "1"), os.MkdirAll(scratch(), 0o700)); err != nil {
		fmt.Fprintln(os.Stderr, "bench: preparing:", err)
		return 1
	}
	defer os.RemoveAll(scratch())
	for range times {
		code = max(code, m.Run())
	}
	return code
}

// scratch is the folder for what is built. The servers run there, where no .env is.
func scratch() string {
	return filepath.Join(os.TempDir(), "proofofstake-bench-"+strconv.Itoa(os.Getpid()))
}

// build has the go command leave a program of that name in scratch, unless it is there.
func build(name string, args ...string) (string, error) {
	program := filepath.Join(scratch(), name)
	if _, err := os.Stat(program); err == nil {
		return program, nil
	}
	cmd := exec.Command("go", args...)
	cmd.Env = append(os.Environ(), "GOBIN="+scratch())
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return program, nil
}

// side is one of the servers that are compared, with its terminals. All that they know of its
// protocol are three strings, and how an announcement ends.
type side struct {
	tb       testing.TB
	joins    string // is typed by each terminal on connecting
	joined   string // says that it has joined
	announce string // sets off an announcement, typed by one that has joined
	ends     string // the last bytes of it
	port     int
	pid      int
	rss      float64 // before its terminals came

	// One goroutine serves the terminals, with epoll, since a goroutine for each would
	// cost more than the server that is measured.
	epoll   int
	all     []terminal // the first one is the speaker, which is never measured
	readers int        // how many of the others read
	waiting []syscall.EpollEvent
	events  [512]syscall.EpollEvent
	buf     []byte
}

// newSide starts a server, which ends with the test or benchmark. Settings are those of this
// server; the floor and the tutorial's way take those that concern them.
func newSide(tb testing.TB, name string, settings ...string) *side {
	tb.Helper()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	free.Close()
	s := &side{tb: tb, port: free.Addr().(*net.TCPAddr).Port, joins: stakeLine, joined: prompt, announce: proposalLine, ends: prompt}
	port := strconv.Itoa(s.port)
	settings = append([]string{"BENCH_ROLE=" + name, "ADDR=127.0.0.1:" + port, "ROUND=100ms", "BROADCAST=1h", "BROADCAST_BLOCKS=0",
		"CHAIN_FILE=", "DRAWS_FILE=", "MAX_CLIENTS=0"}, settings...)
	program, args := self, []string(nil)
	switch name {
	case "ours":
		if program = os.Getenv("BENCH_SERVER"); program == "" { // the path of another one, to compare the two
			program, err = build("proofofstake", "build", "-C", "../..", "-o", scratch(), ".")
		}
	case "floor":
		s.announce = orderAnnouncement
	case "tutorial":
		s.ends = "\n"
	case "nats":
		program, err = build("nats-server", "install", natsServer)
		args = []string{"-a", "127.0.0.1", "-p", port}
		s.joins, s.joined = "CONNECT {\"verbose\":false}\r\nSUB a 1\r\nPING\r\n", "PONG\r\n"
		s.announce = fmt.Sprintf("PUB a %d\r\n%s\r\n", len(announcement), announcement)
	case "redis":
		if program, err = exec.LookPath("redis-server"); err != nil {
			fmt.Fprintln(os.Stderr, "bench: side=redis is skipped: redis-server is not installed")
			tb.SkipNow()
		}
		args = []string{"--bind", "127.0.0.1", "--port", port, "--protected-mode", "no", "--save", "", "--maxclients", "19900"}
		s.joins, s.joined = "HELLO 3\r\nSUBSCRIBE a\r\n", "a\r\n:1\r\n"
		s.announce = fmt.Sprintf("*3\r\n$7\r\nPUBLISH\r\n$1\r\na\r\n$%d\r\n%s\r\n", len(announcement), announcement)
	}
	s.must(err, "building %s", name)
	s.pid = start(tb, exec.Command(program, args...), settings...)
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		conn, err := net.Dial("tcp", "127.0.0.1:"+port)
		if err == nil {
			conn.Close()
			break
		} else if time.Now().After(end) {
			tb.Fatalf("%s does not listen: %v", name, err)
		}
	}
	s.rss = s.memory()
	return s
}

// start starts a program, which ends with the test or benchmark, or when this process dies: Linux
// takes the end of the starting thread for that, and a Go program keeps its threads.
func start(tb testing.TB, cmd *exec.Cmd, environment ...string) (pid int) {
	tb.Helper()
	var said bytes.Buffer
	cmd.Dir, cmd.Env, cmd.Stderr = scratch(), append(os.Environ(), environment...), &said
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		tb.Fatalf("starting a process: %v", err)
	}
	tb.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if tb.Failed() {
			tb.Logf("%s said: %s", environment[0], said.Bytes()[max(0, said.Len()-1000):])
		}
	})
	return cmd.Process.Pid
}

// hear has the server make an announcement and returns the time from the first terminal that has
// it to the last, in ms.
func (s *side) hear() float64 {
	s.tb.Helper()
	s.rest()
	s.speak(s.announce)
	first, last := s.allSee(s.ends, 0)
	return 1e3 * last.Sub(first).Seconds()
}

// announcements has the server make one for each turn of the benchmark's loop, reports how long
// the middle one took and returns the processor time that the server used for them.
func (s *side) announcements(b *testing.B) time.Duration {
	b.Helper()
	before := s.cpu()
	var all []float64
	for b.Loop() {
		all = append(all, s.hear())
	}
	report(b, all, "ms/announcement")
	return s.cpu() - before
}

// report reports the middle one of some figures, and returns it.
func report(b *testing.B, all []float64, unit string) float64 {
	slices.Sort(all)
	b.ReportMetric(0, "ns/op") // most of it is waiting
	b.ReportMetric(all[len(all)/2], unit)
	return all[len(all)/2]
}

// memory is the resident memory of the server in bytes.
func (s *side) memory() float64 {
	s.tb.Helper()
	var size, resident int
	statm, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", s.pid))
	if err == nil {
		_, err = fmt.Sscan(string(statm), &size, &resident)
	}
	s.must(err, "reading the server's memory")
	return float64(resident * os.Getpagesize())
}

// cpu is the processor time that the server has used, to the nanosecond, where /proc has steps of 10 ms.
func (s *side) cpu() time.Duration {
	s.tb.Helper()
	var t syscall.Timespec
	clock := ^s.pid<<3 | 2 // of a process, by its scheduler
	if _, _, err := syscall.Syscall(syscall.SYS_CLOCK_GETTIME, uintptr(clock), uintptr(unsafe.Pointer(&t)), 0); err != 0 {
		s.tb.Fatalf("reading the server's processor time: %v", err)
	}
	return time.Duration(t.Nano())
}
