//go:build linux

package bench

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"
	"unsafe"
)

const (
	self       = "/proc/self/exe" // this program
	natsServer = "github.com/nats-io/nats-server/v2@v2.15.2"
	patience   = 20 * time.Second // with a server
)

// scratch is the folder of what is built.
var scratch = filepath.Join(os.TempDir(), fmt.Sprint("proofofstake-bench-", os.Getpid()))

// TestMain is what a process is to be that the tests have started, or runs all of them, from
// beginning to end, -count times. By itself, go test repeats each benchmark before it comes to the
// next one; so the sides take turns.
func TestMain(m *testing.M) {
	roles := map[string]func() error{"floor": runFloor, "tutorial": runTutorial, "flood": runFlood}
	if role := roles[os.Getenv("BENCH_ROLE")]; role != nil {
		log.Fatal(role())
	}
	flag.Parse()
	count := flag.Lookup("test.count").Value
	times, code := count.(flag.Getter).Get().(uint), 0
	count.Set("1")
	for range times {
		code = max(code, m.Run())
	}
	os.RemoveAll(scratch)
	os.Exit(code)
}

// side is one of the servers that are compared, with its terminals. All that they know of its
// protocol are three strings, and how an announcement ends.
type side struct {
	testing.TB
	joins    string // is typed by each terminal on connecting
	joined   string // says that it has joined
	announce string // sets off an announcement, typed by one that has joined
	ends     string // the last bytes of it
	port     int
	pid      int
	rss      float64  // before its terminals came
	speaker  net.Conn // a terminal that sets off what the others are to get, and is not measured

	// One goroutine serves the others, with epoll, since a goroutine for each would
	// cost more than the server that is measured.
	epoll   int
	all     []terminal
	readers int // how many of them read
	waiting []syscall.EpollEvent
	events  [512]syscall.EpollEvent
	buf     [256 << 10]byte
}

// newSide starts a server, which ends with the test or benchmark. Settings are those of this
// server; the floor and the tutorial's way take those that concern them.
func newSide(tb testing.TB, name string, settings ...string) *side {
	tb.Helper()
	s := &side{TB: tb, joins: stakeLine, joined: prompt, announce: proposalLine, ends: prompt}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	s.must(err, "looking for a free port")
	free.Close()
	address := free.Addr().String()
	s.port = free.Addr().(*net.TCPAddr).Port
	program, args := self, []string(nil)
	switch name {
	case "ours":
		if program = os.Getenv("BENCH_SERVER"); program == "" { // the path of another one, to compare the two
			program = s.install("proofofstake", "proofofstake")
		}
	case "floor":
		s.announce = orderAnnouncement
	case "tutorial":
		s.ends = "\n"
	case "nats":
		program = s.install("nats-server", natsServer)
		args = []string{"-a", "127.0.0.1", "-p", strconv.Itoa(s.port)}
		s.joins, s.joined = "CONNECT {\"verbose\":false}\r\nSUB a 1\r\nPING\r\n", "PONG\r\n"
		s.announce = fmt.Sprintf("PUB a %d\r\n%s\r\n", len(announcement), announcement)
	case "redis":
		if program, err = exec.LookPath("redis-server"); err != nil {
			fmt.Fprintln(os.Stderr, "bench: side=redis is skipped: redis-server is not installed")
			tb.SkipNow()
		}
		args = []string{"--bind", "127.0.0.1", "--port", strconv.Itoa(s.port), "--protected-mode", "no", "--save", "", "--maxclients", "19900"}
		s.joins, s.joined = "HELLO 3\r\nSUBSCRIBE a\r\n", "a\r\n:1\r\n"
		s.announce = fmt.Sprintf("*3\r\n$7\r\nPUBLISH\r\n$1\r\na\r\n$%d\r\n%s\r\n", len(announcement), announcement)
	}
	s.pid = start(tb, exec.Command(program, args...), append([]string{"BENCH_ROLE=" + name, "ADDR=" + address, "ROUND=100ms",
		"BROADCAST=1h", "BROADCAST_BLOCKS=0", "BLOCKS=0", "CHAIN_FILE=", "DRAWS_FILE=", "MAX_CLIENTS=0"}, settings...)...)
	for end := time.Now().Add(patience); s.speaker == nil && time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		s.speaker, err = net.Dial("tcp", address)
	}
	s.must(err, "%s does not listen", name)
	tb.Cleanup(func() { s.speaker.Close() })
	go io.Copy(io.Discard, s.speaker)
	s.speak(s.joins)
	s.rss = s.memory()
	return s
}

// install returns the path of a program that the go command installs in scratch, unless it has.
func (s *side) install(program, source string) string {
	path := filepath.Join(scratch, program)
	if _, err := os.Stat(path); err != nil {
		cmd := exec.Command("go", "install", source)
		cmd.Env = append(os.Environ(), "GOBIN="+scratch)
		out, err := cmd.CombinedOutput()
		s.must(err, "installing %s: %s", source, out)
	}
	return path
}

// start starts a program in an empty folder, where no .env is. It ends with the test or benchmark,
// or when this process dies: Linux takes the end of the starting thread for that, and a Go program
// keeps its threads.
func start(tb testing.TB, cmd *exec.Cmd, environment ...string) (pid int) {
	tb.Helper()
	var said bytes.Buffer
	cmd.Dir, cmd.Env, cmd.Stderr = tb.TempDir(), append(os.Environ(), environment...), &said
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

// must ends the test or benchmark if there is an error.
func (s *side) must(err error, format string, args ...any) {
	if err != nil {
		s.Helper()
		s.Fatalf("%s: %v", fmt.Sprintf(format, args...), err)
	}
}

// memory is the resident memory of the server in bytes.
func (s *side) memory() float64 {
	var size, resident int
	statm, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", s.pid))
	s.must(err, "reading the server's memory")
	_, err = fmt.Sscan(string(statm), &size, &resident)
	s.must(err, "reading the server's memory")
	return float64(resident * os.Getpagesize())
}

// cpu is the processor time that the server has used, to the nanosecond, where /proc has steps of 10 ms.
func (s *side) cpu() time.Duration {
	var t syscall.Timespec
	clock := ^s.pid<<3 | 2 // of a process, by its scheduler
	if _, _, err := syscall.Syscall(syscall.SYS_CLOCK_GETTIME, uintptr(clock), uintptr(unsafe.Pointer(&t)), 0); err != 0 {
		s.Fatalf("reading the server's processor time: %v", err)
	}
	return time.Duration(t.Nano())
}
