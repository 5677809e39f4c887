//go:build linux

package bench

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"proofofstake/internal/lineconn"
)

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

// TestSides has each side announce to a few terminals, and sees that all get as many bytes, and as
// many from the floor as from the server.
func TestSides(t *testing.T) {
	for name, said := range map[string]string{"ours": announcement, "floor": announcement, "tutorial": winner + anyHash + "\n"} {
		s := newSide(t, name)
		s.join(50)
		s.hear() // before it, those who joined early may hear of the others
		s.hear()
		s.rest()
		for _, terminal := range s.all {
			// The numbers of an announcement may have some digits more, or less.
			if got := terminal.got; got != s.all[0].got || got < len(said)-4 || got > len(said)+4 {
				t.Errorf("%s: one terminal got %d bytes, another %d, of the %d of %q", name, s.all[0].got, got, len(said), said)
			}
		}
	}
}

// each runs a benchmark with so many terminals of each side.
func each(b *testing.B, n int, sides string, run func(b *testing.B, name string, n int)) {
	for _, name := range strings.Fields(sides) {
		b.Run(fmt.Sprintf("terminals=%d/side=%s", n, name), func(b *testing.B) { run(b, name, n) })
	}
}

// BenchmarkAnnouncement measures what terminals cost when they join, hear an announcement and idle.
// The tutorial's way prints all of them whenever one joins: it is measured with few.
func BenchmarkAnnouncement(b *testing.B) {
	each(b, 1000, "floor ours nats redis tutorial", benchmarkAnnouncement)
	each(b, 5000, "floor ours", benchmarkAnnouncement)
	each(b, 10000, "floor ours", benchmarkAnnouncement)
	each(b, 19000, "floor ours nats redis", benchmarkAnnouncement)
}

// benchmarkAnnouncement does that with n terminals of one side.
func benchmarkAnnouncement(b *testing.B, name string, n int) {
	s := newSide(b, name)
	before := s.memory()
	started := time.Now()
	s.join(n)
	joining := time.Since(started).Seconds()
	if name == "nats" {
		time.Sleep(2500 * time.Millisecond) // after 2 s it once looks at each connection
	}
	for range 2 { // warms up what the later ones use
		s.hear()
	}
	memory, cpu := s.memory()-before, s.cpu()
	turns(b, "ms/announcement", s.hear) // b.Loop drops what was reported before
	b.ReportMetric(float64(n)/joining, "joins/s")
	b.ReportMetric(memory/1024/float64(n), "KiB/terminal")
	b.ReportMetric(float64((s.cpu()-cpu).Microseconds())/float64(b.N*n), "server-µs/terminal")
	const watched = 400 * time.Millisecond
	time.Sleep(watched) // some have work left after an announcement
	cpu = s.cpu()
	time.Sleep(watched)
	b.ReportMetric(100*(s.cpu()-cpu).Seconds()/watched.Seconds(), "idle-%")
}

// turns measures something in each turn of the benchmark's loop, reports and returns the middle figure.
func turns(b *testing.B, unit string, measure func() float64) float64 {
	var all []float64
	for b.Loop() {
		all = append(all, measure())
	}
	slices.Sort(all)
	b.ReportMetric(0, "ns/op") // most of it is waiting
	b.ReportMetric(all[len(all)/2], unit)
	return all[len(all)/2]
}

// BenchmarkProposals measures how fast one proposal from each terminal is taken, in one round.
func BenchmarkProposals(b *testing.B) {
	each(b, 5000, "floor ours", func(b *testing.B, name string, n int) {
		s := newSide(b, name, "ROUND=500ms")
		s.join(n)
		turns(b, "proposals/s", func() float64 {
			s.hear() // a round begins
			s.rest()
			started := time.Now()
			for _, t := range s.all {
				s.must(syscall.Sendto(t.fd, []byte(proposalLine), 0, nil), "proposing")
			}
			s.allSee(accepted, 0)
			return float64(n) / time.Since(started).Seconds()
		})
	})
}

// withChain starts a side with a chain of so many blocks.
func withChain(b *testing.B, name string, blocks int, every time.Duration) *side {
	b.Setenv("BLOCKS", strconv.Itoa(blocks))
	var lines bytes.Buffer
	out := json.NewEncoder(&lines)
	for _, block := range newChain() {
		out.Encode(block)
	}
	file := filepath.Join(b.TempDir(), "chain")
	if err := os.WriteFile(file, lines.Bytes(), 0o600); err != nil {
		b.Fatal(err)
	}
	return newSide(b, name, "BROADCAST="+every.String(), "CHAIN_FILE="+file)
}

// BenchmarkStuck measures whether terminals wait for others that do not read.
func BenchmarkStuck(b *testing.B) {
	for _, others := range []struct {
		name        string
		read, stuck int
	}{{"none", 0, 0}, {"read", 1000, 0}, {"stuck", 0, 1000}} {
		b.Run("others="+others.name+"/side=ours", func(b *testing.B) {
			s := withChain(b, "ours", 600, time.Second)
			for range others.stuck {
				s.connect(true)
			}
			s.join(1000 + others.read)
			started := time.Now()
			turns(b, "ms/announcement", func() float64 {
				// A broadcast fills what the kernel holds for the stuck ones. From the first
				// until they are cut off, output waits for them in the server.
				s.allSee("]\n", 0)
				return s.hear()
			})
			if time.Since(started) > lineconn.StallTimeout {
				b.Fatal("stuck terminals may have been cut off: measure fewer announcements (-benchtime)")
			}
		})
	}
}

// BenchmarkFlood measures what a few terminals that send as fast as they can do to quiet ones.
func BenchmarkFlood(b *testing.B) {
	for _, name := range []string{"ours", "tutorial"} {
		for _, flood := range []int{0, flooders} {
			b.Run(fmt.Sprintf("flooders=%d/side=%s", flood, name), func(b *testing.B) {
				s := newSide(b, name)
				s.join(1000)
				s.hear()
				if flood > 0 {
					s.start("flood", []string{self})
				}
				started, memory, cpu := time.Now(), s.memory(), s.cpu()
				turns(b, "ms/announcement", s.hear)
				b.ReportMetric(100*(s.cpu()-cpu).Seconds()/time.Since(started).Seconds(), "server-%")
				b.ReportMetric((s.memory()-memory)/1024, "KiB-added")
			})
		}
	}
}

// BenchmarkBroadcast measures how fast a long chain goes to all terminals; the tutorial's way with
// few of them, since it makes it up anew for each.
func BenchmarkBroadcast(b *testing.B) {
	const every = 400 * time.Millisecond // longer than one takes
	run := func(b *testing.B, name string, n int) {
		s := withChain(b, name, 1000, every)
		s.join(n)
		size := 0 // is not known before the first one
		broadcast := func() float64 {
			s.rest()
			if name == "floor" {
				io.WriteString(s.speaker, orderBroadcast)
			} else { // broadcasts are due as far apart as the terminals joined; after a halt, all are due
				s.must(syscall.Kill(s.pid, syscall.SIGSTOP), "halting the server")
				time.Sleep(every)
				s.must(syscall.Kill(s.pid, syscall.SIGCONT), "resuming the server")
			}
			return s.allSee("]\n", size)
		}
		broadcast()
		size = s.all[0].got
		b.ReportMetric(float64(n*size)/1e3/turns(b, "ms/broadcast", broadcast), "MB/s")
	}
	each(b, 100, "floor ours tutorial", run)
	each(b, 1000, "floor ours", run)
}

const (
	self     = "/proc/self/exe" // this program
	patience = 20 * time.Second // with a server
	window   = 256              // how many terminals are joining at the same time
)

// scratch is the folder of what is built.
var scratch = filepath.Join(os.TempDir(), fmt.Sprint("proofofstake-bench-", os.Getpid()))

// side is one of the servers that are compared, with its terminals. All that they know of its
// protocol are three strings, and how an announcement ends.
type side struct {
	testing.TB
	joins    string // is typed by each terminal on connecting
	joined   string // says that it has joined
	announce string // sets off an announcement, typed by one that has joined
	ends     string // the last bytes of it
	address  *net.TCPAddr
	pid      int
	speaker  net.Conn // a terminal that sets off what the others are to get, and is not measured

	// One goroutine serves the others, since one for each would cost more than the server.
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
	s.address = free.Addr().(*net.TCPAddr)
	port := strconv.Itoa(s.address.Port)
	command := []string{self}
	switch name {
	case "ours":
		command[0] = os.Getenv("BENCH_SERVER") // the path of another one, to compare the two
		if command[0] == "" {
			command[0] = s.install("proofofstake", "proofofstake")
		}
	case "floor":
		s.announce = orderAnnouncement
	case "tutorial":
		s.ends = "\n"
	case "nats":
		natsServer := s.install("nats-server", "github.com/nats-io/nats-server/v2@v2.15.2")
		command = []string{natsServer, "-a", "127.0.0.1", "-p", port}
		s.joins, s.joined = "CONNECT {\"verbose\":false}\r\nSUB a 1\r\nPING\r\n", "PONG\r\n"
		s.announce = fmt.Sprintf("PUB a %d\r\n%s\r\n", len(announcement), announcement)
	case "redis":
		if _, err := exec.LookPath("redis-server"); err != nil {
			fmt.Fprintln(os.Stderr, "bench: side=redis is skipped: redis-server is not installed")
			s.SkipNow()
		}
		command = []string{"redis-server", "--bind", "127.0.0.1", "--port", port, "--save", "",
			"--protected-mode", "no", "--maxclients", "19900"}
		s.joins, s.joined = "HELLO 3\r\nSUBSCRIBE a\r\n", "a\r\n:1\r\n"
		s.announce = fmt.Sprintf("*3\r\n$7\r\nPUBLISH\r\n$1\r\na\r\n$%d\r\n%s\r\n", len(announcement), announcement)
	}
	s.pid = s.start(name, command, append([]string{"ROUND=100ms", "BROADCAST=1h", "BROADCAST_BLOCKS=0",
		"CHAIN_FILE=", "DRAWS_FILE=", "MAX_CLIENTS=0"}, settings...)...)
	for end := time.Now().Add(patience); s.speaker == nil && time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		s.speaker, err = net.Dial("tcp", s.address.String())
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

// start starts a program, or this one in a role, in an empty folder, where no .env is. It ends with
// the test or benchmark and never before, or when this process dies: Linux takes the end of the
// starting thread for that, and a Go program keeps its threads.
func (s *side) start(role string, command []string, settings ...string) (pid int) {
	var said bytes.Buffer
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Dir, cmd.Stderr = s.TempDir(), &said
	cmd.Env = append(append(os.Environ(), "BENCH_ROLE="+role, "ADDR="+s.address.String()), settings...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	s.must(cmd.Start(), "starting %s", role)
	s.Cleanup(func() {
		cmd.Process.Kill()
		if cmd.Wait(); cmd.ProcessState.Exited() {
			s.Errorf("%s ended before its time", role)
		}
		if s.Failed() {
			s.Logf("%s said: %s", role, said.Bytes()[max(0, said.Len()-1000):])
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

// join has so many terminals join.
func (s *side) join(count int) {
	s.count = count
	s.allSee(s.joined, 0)
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
		syscall.Connect(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: s.address.Port}), // at once, over loopback
		syscall.Sendto(fd, []byte(s.joins), 0, nil)), "connecting terminal %d", len(s.sockets))
}

// next returns the next terminal that gets something, and what, or with MSG_TRUNC only how much. If
// nothing comes for as long as wait, it returns no terminal.
func (s *side) next(wait time.Duration, flags int) (*terminal, []byte) {
	for len(s.waiting) == 0 {
		n, err := syscall.EpollWait(s.epoll, s.events[:], int(max(0, wait.Milliseconds())))
		if n == 0 || wait < 0 {
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
	for end := time.Now().Add(patience); time.Now().Before(end); {
		if t, _ := s.next(30*time.Millisecond, 0); t == nil {
			return
		}
	}
	s.Fatal("the server does not stop sending")
}

// allSee waits until every terminal has got the marker or, if size is not 0, so many bytes, which
// are too many to look at; until then, those that are still to join do so. It returns the time
// from the first one to the last, in ms.
func (s *side) allSee(marker string, size int) float64 {
	joining := len(s.all) < s.count // is not slowed down by glances
	for i, t := range s.all {
		s.all[i] = terminal{fd: t.fd}
	}
	flags := 0
	if size > 0 {
		flags = syscall.MSG_TRUNC
	}
	// How long bytes may collect between two looks at them: the error of what is measured. To be
	// woken for each terminal's bytes would cost more than all the rest.
	glance := syscall.Timespec{Nsec: 200_000}
	var first time.Time
	for done, end := 0, time.Now().Add(patience); done < s.count; {
		for len(s.all) < min(s.count, done+window) {
			s.connect(false)
		}
		if len(s.waiting) == 0 && done > 0 && !joining {
			syscall.Nanosleep(&glance, nil)
		}
		t, p := s.next(time.Until(end), flags)
		if t == nil {
			s.Fatalf("%d of %d terminals got %q", done, s.count, marker)
		}
		if !t.done && (size > 0 && t.got >= size || size == 0 && bytes.Contains(p, []byte(marker))) {
			t.done = true
			if done++; done == 1 {
				first = time.Now()
			}
		}
	}
	return 1e3 * time.Since(first).Seconds()
}

// hear has the server make an announcement that all terminals hear, which takes so many ms.
func (s *side) hear() float64 {
	s.rest()
	io.WriteString(s.speaker, s.announce)
	return s.allSee(s.ends, 0)
}
