package lineconn

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/metrics"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// What Listen accepts has the options for peers that nobody can trust.
func TestListenOptions(t *testing.T) {
	l, err := Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	peer, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	ours, err := l.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	listener, _ := l.SyscallConn()
	accepted, _ := ours.SyscallConn()
	for _, o := range []struct {
		of                  syscall.RawConn
		name                string
		level, option, want int
	}{
		{listener, "SO_PROTOCOL", syscall.SOL_SOCKET, 38, syscall.IPPROTO_TCP},
		{accepted, "SO_SNDBUF", syscall.SOL_SOCKET, syscall.SO_SNDBUF, 128 << 10},
		{accepted, "SO_RCVBUF", syscall.SOL_SOCKET, syscall.SO_RCVBUF, 48 << 10},
		{accepted, "SO_BUF_LOCK", syscall.SOL_SOCKET, 72, 3}, // both buffers stay as they are
		{accepted, "SO_KEEPALIVE", syscall.SOL_SOCKET, syscall.SO_KEEPALIVE, 1},
		{accepted, "TCP_KEEPIDLE", syscall.IPPROTO_TCP, syscall.TCP_KEEPIDLE, 30},
		{accepted, "TCP_KEEPINTVL", syscall.IPPROTO_TCP, syscall.TCP_KEEPINTVL, 10},
		{accepted, "TCP_KEEPCNT", syscall.IPPROTO_TCP, syscall.TCP_KEEPCNT, 6},
		{accepted, "TCP_USER_TIMEOUT", syscall.IPPROTO_TCP, 18, 50000},
	} {
		o.of.Control(func(fd uintptr) {
			if got, err := syscall.GetsockoptInt(int(fd), o.level, o.option); got != o.want || err != nil {
				t.Errorf("%s is %d, %v; want %d", o.name, got, err, o.want)
			}
		})
	}
	if l, err := Listen("127.0.0.1:nonsense"); err == nil {
		t.Errorf("listening on %v", l.Addr())
	}
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	raw, _ := udp.(syscall.Conn).SyscallConn()
	if err := listenConfig().Control("", "", raw); err == nil {
		t.Error("no error for options that cannot be set")
	}
}

// A connection that waits for a line uses so little stack that one of 2 KiB, of which Go
// keeps 928 bytes for itself, is enough, and few bytes besides.
func TestIdleIsSmall(t *testing.T) {
	const conns = 200
	w := crew(t, 1)
	var ours, peers []net.Conn
	for range conns {
		o, p := tcp(t)
		ours, peers = append(ours, o), append(peers, p)
	}
	memory := func() (stack, heap int) {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC() // for what the first one has given back
		runtime.ReadMemStats(&m)
		used := []metrics.Sample{{Name: "/gc/scan/stack:bytes"}}
		metrics.Read(used)
		return int(used[0].Value.Uint64()), int(m.HeapAlloc)
	}
	stackBefore, heapBefore := memory()
	for i, peer := range peers {
		c := w.Conn(ours[i])
		defer c.CutOff()
		go func() {
			c.Tell("question")
			for _, err := c.Ask(); err == nil; _, err = c.Ask() {
				c.Tell("answer")
			}
		}()
		mustRead(t, peer, "question")
		peer.Write([]byte("line\n"))
		mustRead(t, peer, "answer")
	}
	stack, heap := memory()
	stack, heap = (stack-stackBefore)/conns, (heap-heapBefore)/conns
	if stack > 1000 || heap > 1000 {
		t.Errorf("each has %d bytes on the stack and %d others, want 1000 at most", stack, heap)
	}
}

// An announcement is made up once, and costs no memory for each member.
func TestAnnounceAllocates(t *testing.T) {
	w := crew(t, 1)
	g := NewGroup(time.Hour)
	var all []*Conn
	for range 50 {
		ours, peer := tcp(t)
		c := w.Conn(ours)
		defer c.CutOff()
		g.Add(c)
		all = append(all, c)
		go io.Copy(io.Discard, peer)
	}
	allocated := testing.AllocsPerRun(20, func() {
		g.Announce(NewNotice([]byte("winning validator")), nil)
		for _, c := range all {
			c.Flush()
		}
	})
	if allocated > 25 {
		t.Errorf("an announcement to 50 members allocates %v times", allocated)
	}
}

// spy is a TCP connection that tells how it was written to.
type spy struct {
	*net.TCPConn
	writes   atomic.Int64 // calls of Write
	deadline atomic.Value // the last write deadline
}

func (s *spy) Write(p []byte) (int, error) {
	s.writes.Add(1)
	return s.TCPConn.Write(p)
}

func (s *spy) SetWriteDeadline(t time.Time) error {
	s.deadline.Store(t)
	return s.TCPConn.SetWriteDeadline(t)
}

// What the kernel takes at once is written by the crew itself, without a goroutine
// and a deadline. Only what it does not take is written patiently, and after
// that the deadline is gone.
func TestSocketWrites(t *testing.T) {
	ours, peer := tcp(t)
	s := &spy{TCPConn: ours}
	c := crew(t, 1).Conn(s)
	for range 10 {
		c.Tell("small")
	}
	c.Flush()
	if n := s.writes.Load(); n != 0 {
		t.Errorf("%d writes were patient ones", n)
	}
	mustRead(t, peer, strings.Repeat("small", 10))

	big := strings.Repeat("0123456789abcdef", 8<<20/16)
	c.Show(NewNotice([]byte(big)))
	c.Tell("the end")
	mustRead(t, peer, big+"the end")
	c.Flush()
	patient := s.writes.Load()
	if patient == 0 {
		t.Error("no write was a patient one")
	}
	if d, _ := s.deadline.Load().(time.Time); !d.IsZero() {
		t.Errorf("the write deadline is still set: %v", d)
	}
	for unsentBytes(c.raw) > 0 { // the kernel may wait for the last word of the peer's
		runtime.Gosched()
	}
	c.Tell("small again")
	c.Flush()
	if n := s.writes.Load(); n != patient {
		t.Errorf("%d writes were patient ones after all had been taken", n-patient)
	}
	mustRead(t, peer, "small again")
}

// A write that was interrupted, or would block, is repeated by a patient one; any other failure stays one.
func TestWritten(t *testing.T) {
	for errno, want := range map[syscall.Errno]error{0: nil, syscall.EAGAIN: errWouldBlock, syscall.EINTR: errWouldBlock, syscall.EPIPE: syscall.EPIPE} {
		n, err := written(5, errno)
		if err != want || (err == nil) != (n == 5) {
			t.Errorf("of errno %d: %d, %v; want %v", errno, n, err, want)
		}
	}
}

// fullSocket takes nothing patiently, but its queue may shrink.
type fullSocket struct {
	net.Conn
	queue *net.UnixConn
}

func (s fullSocket) SyscallConn() (syscall.RawConn, error) { return s.queue.SyscallConn() }

// Bytes that leave the send queue are progress, even if the kernel takes no more yet.
func TestPatienceSeesQueue(t *testing.T) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "socket"), Net: "unix"})
	if err != nil {
		t.Skip(err)
	}
	peer, err := net.DialUnix("unix", nil, l.Addr().(*net.UnixAddr))
	if err != nil {
		t.Fatal(err)
	}
	queue, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	queue.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
	for err == nil { // until it is full
		_, err = queue.Write(make([]byte, 4<<10))
	}
	synctest.Test(t, func(t *testing.T) {
		ours, other := net.Pipe()
		c := crew(t, 1).Conn(fullSocket{ours, queue})
		c.Tell("hello")
		for range 3 {
			time.Sleep(25 * time.Second)
			mustRead(t, peer, string(make([]byte, 32<<10)))
		}
		c.Tell("hello") // is no progress
		start := time.Now()
		c.Flush()
		if took := time.Since(start); took < 30*time.Second || took > 31*time.Second {
			t.Errorf("it was cut off after %v, want 30 s", took)
		}
		mustErr(t, c, ErrNotReading)
		other.Close()
	})
}

// space is a network namespace: functions that are sent to it are called there.
type space struct {
	calls chan func()
	id    string // of a thread that is there
}

// newSpace makes a namespace, or skips the test if it cannot.
func newSpace(t *testing.T) *space {
	s := &space{calls: make(chan func())}
	ready := make(chan error)
	go func() {
		runtime.LockOSThread() // to the end: the thread ends with the goroutine
		s.id = strconv.Itoa(syscall.Gettid())
		ready <- syscall.Unshare(syscall.CLONE_NEWNET)
		for f := range s.calls {
			f()
		}
	}()
	t.Cleanup(func() { close(s.calls) })
	if err := <-ready; err != nil {
		t.Skip("no network namespace: ", err)
	}
	return s
}

// do has f called there.
func (s *space) do(f func()) {
	done := make(chan struct{})
	s.calls <- func() { f(); close(done) }
	<-done
}

// ip runs commands of ip there, or skips the test if it cannot.
func (s *space) ip(t *testing.T, commands ...string) {
	for _, command := range commands {
		s.do(func() {
			if out, err := exec.Command("ip", strings.Fields(command)...).CombinedOutput(); err != nil {
				t.Logf("ip %s: %v, %s", command, err, bytes.TrimSpace(out))
				t.Skip("no network")
			}
		})
	}
}

// A peer that is gone without a word is noticed within a minute of the first thing
// sent to it, and within two minutes of silence. (It takes a minute.)
func TestVanish(t *testing.T) {
	if os.Getenv("LINECONN_NETNS") == "" {
		t.Skip("LINECONN_NETNS is not set")
	}
	for name, vanish := range map[string]string{
		"a cable":               "link set veth1 down",
		"a machine that sleeps": "addr del 10.99.0.2/24 dev veth1",
	} {
		for words, most := range map[string]time.Duration{"": 2 * time.Minute, "anybody there?": time.Minute} {
			t.Run(fmt.Sprintf("%s, told %q", name, words), func(t *testing.T) {
				t.Parallel()
				here, there := newSpace(t), newSpace(t)
				here.ip(t, "link add veth0 type veth peer name veth1 netns "+there.id, "addr add 10.99.0.1/24 dev veth0", "link set veth0 up")
				there.ip(t, "addr add 10.99.0.2/24 dev veth1", "link set veth1 up")
				var l *net.TCPListener
				var err error
				if here.do(func() { l, err = Listen("10.99.0.1:0") }); err != nil {
					t.Fatal(err)
				}
				defer l.Close()
				if there.do(func() { _, err = net.Dial("tcp", l.Addr().String()) }); err != nil {
					t.Fatal(err)
				}
				ours, err := l.Accept()
				if err != nil {
					t.Fatal(err)
				}
				c := crew(t, 1).Conn(ours)
				there.ip(t, vanish)
				start := time.Now()
				if words != "" {
					c.Tell("%s", words)
				}
				c.Ask()
				took := time.Since(start)
				t.Logf("noticed after %v: %v", took, c.Err())
				if took > most {
					t.Errorf("it took more than %v", most)
				}
			})
		}
	}
}
