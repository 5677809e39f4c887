//go:build linux

package bench

import (
	"bytes"
	"errors"
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
	window     = 256              // how many terminals are joining at the same time
)

// scratch is the folder of what is built.
var scratch = filepath.Join(os.TempDir(), fmt.Sprint("proofofstake-bench-", os.Getpid()))

// TestMain is what a process is to be that the tests have started, or runs all of them, from
// beginning to end, -count times. By itself, go test repeats each benchmark before it comes to the
// next one; so the sides take turns.
func TestMain(m *testing.M) {
	roles := map[string]func() error{"floor": runFloor, "tutorial": runTutorial, "flood": runFlood}
	if run := roles[os.Getenv("BENCH_ROLE")]; run != nil {
		log.Fatal(run())
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
	speaker  net.Conn // a terminal that sets off what the others are to get, and is not measured

	// One goroutine serves the others, with epoll, since a goroutine for each would
	// cost more than the server that is measured.
	epoll   int
	count   int        // how many there are to be
	all     []terminal // those that read
	sockets []int      // of all
	waiting []syscall.EpollEvent
	events  [512]syscall.EpollEvent
	buf     [256 << 10]byte
}

// terminal is one that is measured.
type terminal struct {
	fd   int
	got  int      // bytes since all began to wait for something
	tail [32]byte // the last of them, in which a marker may have begun
	done bool     // has got what is waited for
}

// newSide starts a server, which ends with the test or benchmark. Settings are those of this
// server; the floor and the tutorial's way take those that concern them.
func newSide(tb testing.TB, name string, settings ...string) *side {
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
			s.SkipNow()
		}
		args = []string{"--bind", "127.0.0.1", "--port", strconv.Itoa(s.port), "--protected-mode", "no", "--save", "", "--maxclients", "19900"}
		s.joins, s.joined = "HELLO 3\r\nSUBSCRIBE a\r\n", "a\r\n:1\r\n"
		s.announce = fmt.Sprintf("*3\r\n$7\r\nPUBLISH\r\n$1\r\na\r\n$%d\r\n%s\r\n", len(announcement), announcement)
	}
	s.pid = s.start(exec.Command(program, args...), append([]string{"BENCH_ROLE=" + name, "ADDR=" + address, "ROUND=100ms",
		"BROADCAST=1h", "BROADCAST_BLOCKS=0", "CHAIN_FILE=", "DRAWS_FILE=", "MAX_CLIENTS=0"}, settings...)...)
	for end := time.Now().Add(patience); s.speaker == nil && time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		s.speaker, err = net.Dial("tcp", address)
	}
	s.must(err, "%s does not listen", name)
	go io.Copy(io.Discard, s.speaker)
	io.WriteString(s.speaker, s.joins)
	s.epoll, err = syscall.EpollCreate1(syscall.EPOLL_CLOEXEC)
	s.must(err, "epoll_create")
	s.Cleanup(func() {
		s.speaker.Close()
		for _, fd := range append(s.sockets, s.epoll) {
			syscall.Close(fd)
		}
	})
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
func (s *side) start(cmd *exec.Cmd, environment ...string) (pid int) {
	var said bytes.Buffer
	cmd.Dir, cmd.Env, cmd.Stderr = s.TempDir(), append(os.Environ(), environment...), &said
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	s.must(cmd.Start(), "starting %s", environment[0])
	s.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if s.Failed() {
			s.Logf("%s said: %s", environment[0], said.Bytes()[max(0, said.Len()-1000):])
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
	fmt.Sscan(string(statm), &size, &resident)
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

// join has so many terminals join and returns how many did so in a second.
func (s *side) join(count int) float64 {
	s.count = count
	started := time.Now()
	s.allSee(s.joined, 0)
	return float64(count) / time.Since(started).Seconds()
}

// connect connects one more terminal, from one of several loopback addresses, since one has only
// 28,000 ports. A reset at its end leaves none in TIME_WAIT for those who measure next. If
// stuck, it never reads.
func (s *side) connect(stuck bool) {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	s.must(err, "a socket for terminal %d", len(s.sockets))
	s.sockets = append(s.sockets, fd)
	if stuck {
		// Over loopback the kernel would hold megabytes for a terminal that does not
		// read. With the segments of a slow line it holds some ten kilobytes.
		err = errors.Join(syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_RCVBUF, 1),
			syscall.SetsockoptInt(fd, syscall.IPPROTO_TCP, syscall.TCP_MAXSEG, 536))
	} else {
		event := syscall.EpollEvent{Events: syscall.EPOLLIN, Fd: int32(len(s.all))}
		err = syscall.EpollCtl(s.epoll, syscall.EPOLL_CTL_ADD, fd, &event)
		s.all = append(s.all, terminal{fd: fd})
	}
	s.must(errors.Join(err,
		syscall.SetsockoptLinger(fd, syscall.SOL_SOCKET, syscall.SO_LINGER, &syscall.Linger{Onoff: 1}),
		syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, byte(2 + len(s.sockets)/5000)}}),
		syscall.Connect(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: s.port}), // at once, over loopback
		syscall.Sendto(fd, []byte(s.joins), 0, nil)), "connecting terminal %d", len(s.sockets))
}

// next returns the next terminal that gets something, and what, or with MSG_TRUNC only how much. If
// nothing comes for as long as wait, it returns no terminal.
func (s *side) next(wait time.Duration, flags int) (*terminal, []byte) {
	for len(s.waiting) == 0 {
		n, err := syscall.EpollWait(s.epoll, s.events[:], int(wait.Milliseconds()))
		if n == 0 {
			return nil, nil
		}
		if err != syscall.EINTR {
			s.must(err, "epoll_wait")
			s.waiting = s.events[:n]
		}
	}
	t := &s.all[s.waiting[0].Fd]
	s.waiting = s.waiting[1:]
	begun := copy(s.buf[:], t.tail[:])
	n, _, err := syscall.Recvfrom(t.fd, s.buf[begun:], flags)
	if n == 0 {
		err = io.EOF
	}
	s.must(err, "reading what a terminal gets")
	t.got += n
	copy(t.tail[:], s.buf[n:])
	return t, s.buf[:begun+n]
}

// rest drops what comes until nothing has come for 30 ms, so that every server has been idle when
// it is to announce, as one with rounds is.
func (s *side) rest() {
	for {
		if t, _ := s.next(30*time.Millisecond, 0); t == nil {
			return
		}
	}
}

// allSee waits until every terminal has got the marker or, if size is not 0, so many bytes, which
// are too many to look at; until then, those that are still to join do so. It returns the time
// from the first one to the last, in ms.
func (s *side) allSee(marker string, size int) float64 {
	joining := len(s.all) < s.count
	for i, t := range s.all {
		s.all[i] = terminal{fd: t.fd}
	}
	flags := 0
	if size > 0 {
		flags = syscall.MSG_TRUNC
	}
	// How long bytes may collect between two looks at them: the error of what is measured.
	// To be woken for each terminal's bytes would cost more than all the rest.
	glance := syscall.Timespec{Nsec: 200_000}
	var first, last time.Time
	for done := 0; done < s.count; {
		for len(s.all) < min(s.count, done+window) {
			s.connect(false)
		}
		if len(s.waiting) == 0 && done > 0 && !joining {
			syscall.Nanosleep(&glance, nil)
		}
		t, p := s.next(patience, flags)
		if t == nil {
			s.Fatalf("%d of %d terminals got %q", done, s.count, marker)
		}
		if !t.done && (size > 0 && t.got >= size || size == 0 && bytes.Contains(p, []byte(marker))) {
			t.done = true
			done++
			if last = time.Now(); done == 1 {
				first = last
			}
		}
	}
	return 1e3 * last.Sub(first).Seconds()
}

// hear has the server make an announcement that all terminals hear, which takes so many ms.
func (s *side) hear() float64 {
	s.rest()
	io.WriteString(s.speaker, s.announce)
	return s.allSee(s.ends, 0)
}
