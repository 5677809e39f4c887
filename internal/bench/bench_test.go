//go:build linux

// Package bench holds benchmarks that measure this server and others over real sockets, on Linux only. README.md in
// this directory says what they measure and shows the figures.
package bench

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"
)

// What a client types and gets. The values in an announcement are as long as those of the real server.
const (
	stakeLine    = "100\n"
	proposalLine = "72\n"
	stakePrompt  = "Enter token balance:"
	bpmPrompt    = "\nEnter a new BPM:"
	winner       = "\nwinning validator: "
	anyHash      = "5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed5eed"
	announcement = winner + anyHash + "\nblock 1, BPM 72: ticket 57 of 100\n" +
		"draw 1 secret: KBZ3ZK5EUBYQZ2WUTMH3RYMSGE\ndraw 1 seal: " + anyHash + "\n" + bpmPrompt
)

// TestMain runs the benchmarks, or one of the servers as a process that they start.
func TestMain(m *testing.M) {
	servers := map[string]func() func(net.Conn){"baseline": newBaseline, "tutorial": newTutorial}
	newServer := servers[os.Getenv("BENCH_ROLE")]
	if newServer == nil {
		os.Exit(m.Run())
	}
	handleConn := newServer()
	ln, err := net.Listen("tcp", os.Getenv("ADDR"))
	for err == nil {
		var conn net.Conn
		if conn, err = ln.Accept(); err == nil {
			go handleConn(conn)
		}
	}
	log.Fatal(err)
}

// BenchmarkAnnouncement measures what clients cost when they join and when they get an announcement.
func BenchmarkAnnouncement(b *testing.B) {
	for _, clients := range []int{1000, 5000, 10000, 19000} {
		for _, name := range []string{"baseline", "ours", "nats", "redis", "tutorial"} {
			if name == "tutorial" && clients > 1000 {
				continue // it prints all validators whenever one joins
			}
			b.Run(fmt.Sprintf("clients=%d/side=%s", clients, name), func(b *testing.B) {
				s, n := newSide(b, name), float64(clients)
				before, _ := s.usage()
				started := time.Now()
				s.join(clients)
				joining := time.Since(started)
				if name == "nats" {
					time.Sleep(2500 * time.Millisecond) // nats-server pings each client 2 s after it connects
				}
				for range 2 { // the first announcement allocates what later ones reuse
					s.received = 0
					s.announce()
					s.rest()
				}
				if got := s.received / clients; name == "ours" && (got < len(announcement)-8 || got > len(announcement)+8) {
					b.Errorf("our announcement has %d bytes, the other sides send %d", got, len(announcement))
				}
				memory, idle := s.usage()
				reportMedian(b, s.announce) // first, because b.Loop drops earlier reports
				_, cpu := s.usage()
				b.ReportMetric(float64((cpu-idle).Microseconds())/float64(b.N)/n, "server-µs/client")
				b.ReportMetric((memory-before)/n, "KiB/client")
				b.ReportMetric(n/joining.Seconds(), "joins/s")
			})
		}
	}
}

// reportMedian makes an announcement in each iteration of the benchmark, and reports the median time in milliseconds.
func reportMedian(b *testing.B, announce func() float64) {
	var all []float64
	for b.Loop() {
		all = append(all, announce())
	}
	slices.Sort(all)
	b.ReportMetric(0, "ns/op") // hides the time of an iteration, which is mostly waiting
	b.ReportMetric(all[len(all)/2], "ms/announcement")
}

// BenchmarkStalled measures whether clients wait for others that do not read. It must take less than 30 s: after that,
// the server disconnects them.
func BenchmarkStalled(b *testing.B) {
	for _, n := range []struct{ reading, stalled int }{{1000, 0}, {2000, 0}, {1000, 1000}} {
		b.Run(fmt.Sprintf("reading=%d/stalled=%d/side=ours", n.reading, n.stalled), func(b *testing.B) {
			s := newSide(b, "ours", "ROUND=500ms")
			s.join(n.reading)
			s.announce() // opens a round
			for _, fd := range s.clients {
				s.must(syscall.Sendto(fd, []byte(proposalLine), 0, nil), "proposing")
			}
			s.receive(winner, timeout) // of a draw with at least 75 kB of lines
			for range n.stalled {
				s.connect(true)
			}
			reportMedian(b, s.announce)
		})
	}
}

// BenchmarkFlood measures what eight clients that send as fast as they can do to 1,000 quiet ones.
func BenchmarkFlood(b *testing.B) {
	const flood = `exec 3<>/dev/tcp/${ADDR/://}; cat <&3 &>/dev/null & echo 100 >&3; exec yes 72 >&3`
	for _, name := range []string{"ours", "tutorial"} {
		for _, flooders := range []int{0, 8} {
			b.Run(fmt.Sprintf("flooders=%d/side=%s", flooders, name), func(b *testing.B) {
				s := newSide(b, name)
				s.join(1000)
				s.announce()
				for range flooders {
					s.start(nil, "bash", "-c", flood)
				}
				started := time.Now()
				before, idle := s.usage()
				reportMedian(b, s.announce)
				memory, cpu := s.usage()
				b.ReportMetric(100*(cpu-idle).Seconds()/time.Since(started).Seconds(), "server-%")
				b.ReportMetric(memory-before, "KiB-added")
			})
		}
	}
}

// timeout is the deadline of each wait for a server.
const timeout = 20 * time.Second

// side is one of the servers that are compared, with its clients. One goroutine serves all clients with epoll, because
// a goroutine for each would need more processor time than the server.
type side struct {
	testing.TB
	joins, joined string // what a client types when it connects, and what it gets when it has joined
	triggers      string // what a joined client types to set off an announcement, which contains winner

	addr     *net.TCPAddr
	pid      int
	trigger  net.Conn // a client that sets off announcements, and is not measured
	epoll    int
	clients  []int // the sockets of those that are measured, then of those that never read
	joining  int   // how many are measured
	received int   // bytes that they have received
	events   [512]syscall.EpollEvent
	buf      [256 << 10]byte
}

// newSide starts a server that ends with the test. The settings are for this server. The other sides ignore them.
func newSide(tb testing.TB, name string, settings ...string) *side {
	s := &side{TB: tb, joins: stakeLine, joined: bpmPrompt, triggers: proposalLine}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	s.must(err, "finding a free port")
	free.Close()
	s.addr = free.Addr().(*net.TCPAddr)
	command := "/proc/self/exe"
	switch name {
	case "ours":
		command = filepath.Join(s.TempDir(), "proofofstake")
		out, err := exec.CommandContext(s.Context(), "go", "build", "-o", command, "proofofstake").CombinedOutput()
		s.must(err, "building the server: %s", out)
	case "nats":
		command = fmt.Sprint("nats-server -a 127.0.0.1 -p ", s.addr.Port)
		s.joins, s.joined = "CONNECT {\"verbose\":false}\r\nSUB a 1\r\nPING\r\n", "PONG\r\n"
		s.triggers = fmt.Sprintf("PUB a %d\r\n%s\r\n", len(announcement), announcement)
	case "redis":
		command = "redis-server --bind 127.0.0.1 --protected-mode no --maxclients 19900 --port " + fmt.Sprint(s.addr.Port)
		s.joins, s.joined = "HELLO 3\r\nSUBSCRIBE a\r\n", "a\r\n:1\r\n"
		s.triggers = fmt.Sprintf("*3\r\n$7\r\nPUBLISH\r\n$1\r\na\r\n$%d\r\n%s\r\n", len(announcement), announcement)
	}
	args := strings.Fields(command)
	if _, err := exec.LookPath(args[0]); err != nil {
		fmt.Fprintf(os.Stderr, "skipping side=%s: %v\n", name, err) // a benchmark does not show the text of Skip
		s.SkipNow()
	}
	inMemory := []string{"BENCH_ROLE=" + name, "ROUND=100ms", "BROADCAST=1h", "CHAIN_FILE=", "MAX_CLIENTS=0"}
	s.pid = s.start(append(inMemory, settings...), args...)
	for end := time.Now().Add(timeout); s.trigger == nil && time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		s.trigger, err = net.Dial("tcp", s.addr.String())
	}
	s.must(err, "%s does not listen after %v", name, timeout)
	go io.Copy(io.Discard, s.trigger)
	io.WriteString(s.trigger, s.joins)
	s.epoll, err = syscall.EpollCreate1(syscall.EPOLL_CLOEXEC)
	s.must(err, "epoll_create")
	s.Cleanup(func() {
		s.trigger.Close()
		for _, fd := range append(s.clients, s.epoll) {
			syscall.Close(fd)
		}
	})
	return s
}

// must ends the test if err is not nil.
func (s *side) must(err error, format string, args ...any) {
	if err != nil {
		s.Helper()
		s.Fatalf("%s: %v", fmt.Sprintf(format, args...), err)
	}
}

// start starts a process in an empty directory, which has no .env. The process is killed when the test ends. It is also
// killed when the thread that started it exits, which a Go program's threads do only with the program.
func (s *side) start(settings []string, command ...string) (pid int) {
	var stderr bytes.Buffer
	cmd := exec.CommandContext(s.Context(), command[0], command[1:]...)
	cmd.Dir, cmd.Stderr, cmd.WaitDelay = s.TempDir(), &stderr, timeout
	cmd.Env = append(append(os.Environ(), "ADDR="+s.addr.String()), settings...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	s.must(cmd.Start(), "starting a process")
	s.Cleanup(func() {
		if err := cmd.Wait(); fmt.Sprint(err) != "signal: killed" || s.Failed() {
			s.Errorf("%v: %v, stderr: %s", cmd, err, stderr.Bytes()[max(0, stderr.Len()-1000):])
		}
	})
	return cmd.Process.Pid
}

// usage returns the resident memory of the server in KiB, and the processor time that it has used, to the nanosecond.
// (/proc counts that in steps of 10 ms.)
func (s *side) usage() (memory float64, cpu time.Duration) {
	var size, resident int
	statm, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", s.pid))
	s.must(err, "reading the server's memory")
	fmt.Sscan(string(statm), &size, &resident)
	var t syscall.Timespec
	clock := ^s.pid<<3 | 2 // CPUCLOCK_SCHED of the process
	syscall.Syscall(syscall.SYS_CLOCK_GETTIME, uintptr(clock), uintptr(unsafe.Pointer(&t)), 0)
	return float64(resident * os.Getpagesize() / 1024), time.Duration(t.Nano())
}

// join connects clients, and waits until all of them have joined.
func (s *side) join(count int) {
	s.joining = count
	s.receive(s.joined, timeout)
}

// connect connects one more client, from one of several loopback addresses, because finding a port gets slow when most
// are taken. Closing it resets the connection, which frees the port. A stalled client asks for the last draw twice and
// never reads.
func (s *side) connect(stalled bool) {
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	s.must(err, "opening a socket for client %d", len(s.clients))
	types := s.joins
	if stalled {
		// Over loopback the kernel would hold megabytes for a client that does not read. With a small buffer and the
		// segments of a slow line it holds some ten kilobytes. The rest is pending in the server.
		types = "draw\ndraw\n"
		err = errors.Join(syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_RCVBUF, 1),
			syscall.SetsockoptInt(fd, syscall.IPPROTO_TCP, syscall.TCP_MAXSEG, 536))
	} else {
		event := syscall.EpollEvent{Events: syscall.EPOLLIN, Fd: int32(len(s.clients))}
		err = syscall.EpollCtl(s.epoll, syscall.EPOLL_CTL_ADD, fd, &event)
	}
	s.clients = append(s.clients, fd)
	s.must(errors.Join(err,
		syscall.SetsockoptInt(fd, syscall.IPPROTO_TCP, syscall.TCP_SYNCNT, 3), // ends Connect after 15 s
		syscall.SetsockoptLinger(fd, syscall.SOL_SOCKET, syscall.SO_LINGER, &syscall.Linger{Onoff: 1}),
		syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, byte(2 + len(s.clients)/5000)}}),
		syscall.Connect(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: s.addr.Port}),
		syscall.Sendto(fd, []byte(types), 0, nil)), "connecting client %d", len(s.clients))
}

// rest drops output until none has come for 30 ms. So every server is idle before it makes an announcement, as one
// with rounds is.
func (s *side) rest() { s.receive("", 30*time.Millisecond) }

// receive waits until every client has received marker, which a server writes in one piece. Clients that have yet to
// join do so meanwhile, 256 at the same time. It returns the time from the first client to the last, in milliseconds.
// If marker is empty, it waits until nothing has come for the time idle.
func (s *side) receive(marker string, idle time.Duration) float64 {
	n, has := 0, make([]bool, s.joining) // which clients have received marker, and how many
	var first, last time.Time
	for end := time.Now().Add(timeout); n < s.joining; {
		for len(s.clients) < min(s.joining, n+256) {
			s.connect(false)
		}
		ready, err := syscall.EpollWait(s.epoll, s.events[:], int(idle.Milliseconds()))
		switch {
		case ready == 0 && marker == "":
			return 0
		case ready == 0 || time.Now().After(end):
			s.Fatalf("after %v, %d of %d clients have received %q", timeout, n, s.joining, marker)
		case err != syscall.EINTR:
			s.must(err, "waiting for output")
		}
		for _, event := range s.events[:max(0, ready)] {
			size, err := syscall.Read(s.clients[event.Fd], s.buf[:])
			if size == 0 {
				err = io.EOF
			}
			s.must(err, "reading the output of client %d", event.Fd)
			s.received += size
			if marker != "" && !has[event.Fd] && bytes.Contains(s.buf[:size], []byte(marker)) {
				has[event.Fd], last = true, time.Now()
				if n++; n == 1 {
					first = last
				}
			}
		}
		// Waking up for the output of each client would cost more than everything else. So output collects for this
		// long, which is the error of what is measured.
		syscall.Nanosleep(&syscall.Timespec{Nsec: 200_000}, nil)
	}
	return 1e3 * last.Sub(first).Seconds()
}

// announce sets off an announcement, and waits until all clients have it. It returns the time from the first client to
// the last, in milliseconds.
func (s *side) announce() float64 {
	s.rest()
	io.WriteString(s.trigger, s.triggers)
	return s.receive(winner, timeout)
}

// newBaseline returns the handler of a server that does only the work of the sockets. One goroutine per connection
// waits in a read and answers a stake. For an announcement, each processor loops over its share of the connections.
func newBaseline() (handleConn func(net.Conn)) {
	var mu sync.Mutex // guards conns
	var conns []net.Conn
	text := []byte(announcement)
	return func(conn net.Conn) {
		mu.Lock()
		conns = append(conns, conn)
		mu.Unlock()
		io.WriteString(conn, stakePrompt)
		var line [64]byte
		for n := 1; n > 0; n, _ = conn.Read(line[:]) { // the process closes conn when it exits
			switch string(line[:n]) {
			case stakeLine:
				conn.Write(text) // about as long as the answer of the real server
			case proposalLine:
				var writers sync.WaitGroup
				mu.Lock()
				for share := range slices.Chunk(conns, 1+len(conns)/runtime.GOMAXPROCS(0)) {
					writers.Go(func() {
						for _, conn := range share {
							conn.Write(text)
						}
					})
				}
				writers.Wait()
				mu.Unlock()
			}
		}
	}
}

// newTutorial returns the handler of a server built the tutorial's way. It starts two more goroutines for each
// connection, sends announcements over one unbuffered channel that all of them read, and prints the validators whenever
// one joins. It differs from the original in three ways. A mutex guards the validators, because the original dies of
// "concurrent map writes" when two clients join at the same moment. The first proposal wins, because BenchmarkDraw
// measures the draw. There are no broadcasts.
func newTutorial() (handleConn func(net.Conn)) {
	announcements, candidate := make(chan string), make(chan string, 1)
	var mu sync.Mutex // guards validators
	validators := map[string]string{}
	go func() {
		for range time.Tick(100 * time.Millisecond) {
			message := winner + <-candidate + "\n"
			mu.Lock()
			receivers := len(validators)
			mu.Unlock()
			for range receivers {
				announcements <- message
			}
		}
	}()
	return func(conn net.Conn) {
		io.WriteString(conn, stakePrompt)
		balance := bufio.NewScanner(conn)
		balance.Scan()
		go func() {
			for message := range announcements {
				io.WriteString(conn, message)
			}
		}()
		mu.Lock()
		address := fmt.Sprintf("%x", sha256.Sum256([]byte(fmt.Sprint(len(validators)))))
		validators[address] = balance.Text()
		fmt.Println(validators)
		mu.Unlock()
		io.WriteString(conn, bpmPrompt)
		go func() {
			for scanBPM := bufio.NewScanner(conn); scanBPM.Scan(); io.WriteString(conn, bpmPrompt) {
				sha256.Sum256([]byte(time.Now().String() + scanBPM.Text() + address)) // hashes the candidate block
				select {
				case candidate <- address:
				default:
				}
			}
		}()
		select {} // where the original sleeps until the next broadcast
	}
}
