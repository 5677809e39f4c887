//go:build unix

package e2e

import (
	"bytes"
	"crypto/sha256"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience bounds every wait, so that a hang is a failure; nothing is expected to take a certain time.
const patience = 60 * time.Second

// binary is the server under test, built as the tests are: with the race detector or not.
var binary string

// underRace reports whether this is a build with the race detector, which takes much more memory.
func underRace() bool {
	info, ok := debug.ReadBuildInfo()
	return ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}

func TestMain(m *testing.M) {
	os.Setenv("GORACE", "atexit_sleep_ms=0") // else every process of a -race build sleeps for a second at its end
	for _, name := range strings.Fields("ADDR ROUND BROADCAST BROADCAST_BLOCKS CHAIN_FILE DRAWS_FILE MAX_STAKE MAX_CLIENTS MAX_PER_ADDRESS") {
		os.Unsetenv(name)
	}
	flag.Parse()
	flag.Set("test.parallel", "100") // they mostly wait
	dir, err := os.MkdirTemp("", "e2e")
	if err == nil {
		binary = filepath.Join(dir, "proofofstake")
		err = build(binary)
	}
	if err != nil {
		log.Fatal(err)
	}
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// build builds the server, with the race detector if the tests are.
func build(name string, flags ...string) error {
	args := append([]string{"build", fmt.Sprint("-race=", underRace()), "-o", name}, flags...)
	if out, err := exec.Command("go", append(args, "proofofstake")...).CombinedOutput(); err != nil {
		return fmt.Errorf("building the server: %w\n%s", err, out)
	}
	return nil
}

// expect fails the test, which goes on, if what it expects is not ok.
func expect(t testing.TB, ok bool, otherwise string, args ...any) {
	if t.Helper(); !ok {
		t.Errorf(otherwise, args...)
	}
}

// screen collects what a process or a connection writes. One goroutine at a time waits for what comes.
type screen struct {
	t       testing.TB
	mu      sync.Mutex
	changed sync.Cond
	text    []byte
	seen    int // of text: what waits have passed over
	ended   bool
}

func newScreen(t testing.TB) *screen {
	s := &screen{t: t}
	s.changed.L = &s.mu
	return s
}

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.text = append(s.text, p...)
	s.changed.Broadcast()
	return len(p), nil
}

// end says that no more will come.
func (s *screen) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	s.changed.Broadcast()
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return string(s.text)
}

// await waits until the screen shows what matches pattern, behind what was waited for before, and returns the
// submatches. It returns nil when the screen has ended, or after a while.
func (s *screen) await(pattern string) (found []string) {
	re := regexp.MustCompile(pattern)
	deadline := time.Now().Add(patience)
	defer time.AfterFunc(patience, s.changed.Broadcast).Stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		unseen := s.text[s.seen:]
		if at := re.FindSubmatchIndex(unseen); at != nil {
			for i := 0; i < len(at); i += 2 {
				found = append(found, string(unseen[at[i]:at[i+1]]))
			}
			s.seen += at[1]
			return found
		}
		if s.ended || time.Now().After(deadline) {
			return nil
		}
		s.changed.Wait()
	}
}

// wait is await for the goroutine of a test, which fails if that does not come.
func (s *screen) wait(pattern string) []string {
	s.t.Helper()
	found := s.await(pattern)
	if found == nil {
		s.t.Fatalf("no %q:\n%s", pattern, s)
	}
	return found
}

// process is a program that runs: the server, a netcat, a script. Its screen is its standard output.
type process struct {
	*exec.Cmd
	*screen
	stderr *screen
	stdin  io.WriteCloser
	exited chan struct{} // closed when it has
	addr   string        // of a server: where it listens, host:port
}

// prepare makes a process that is to be launched.
func prepare(t testing.TB, dir, name string, args ...string) *process {
	p := &process{Cmd: exec.Command(name, args...), screen: newScreen(t), stderr: newScreen(t), exited: make(chan struct{})}
	p.Dir, p.Stdout, p.Stderr = dir, p.screen, p.stderr
	p.stdin, _ = p.StdinPipe()
	return p
}

// launch starts p. It is killed when the test ends.
func (p *process) launch() *process {
	p.t.Helper()
	if err := p.Start(); err != nil {
		p.t.Fatal(err)
	}
	go func() {
		p.Wait()
		p.screen.end()
		p.stderr.end()
		close(p.exited)
	}()
	p.t.Cleanup(func() {
		p.Process.Kill()
		p.exit()
		fault := regexp.MustCompile("(?s)(DATA RACE|panic:).*").FindString(p.stderr.String())
		expect(p.t, fault == "", "%s", fault)
	})
	return p
}

func (p *process) String() string    { return p.screen.String() }
func (p *process) types(text string) { io.WriteString(p.stdin, text) }

// exit waits for the end of p and returns its exit status; -1: killed by a signal.
func (p *process) exit() int {
	p.t.Helper()
	select {
	case <-p.exited:
		return p.ProcessState.ExitCode()
	case <-time.After(patience):
		p.t.Fatalf("%s does not end: %s", p.Path, p)
		return 0
	}
}

// stop sends p a signal, or nil: ends its input (nc stays when the server has closed the connection, until the next
// Enter). On that p has to exit well.
func (p *process) stop(signal os.Signal) {
	p.t.Helper()
	if p.stdin.Close(); signal != nil {
		p.Process.Signal(signal)
	}
	code := p.exit()
	expect(p.t, code == 0, "%s after %v: exit status %d: %s", p.Path, signal, code, p.stderr)
}

// prepareServer makes a server that works in dir, on a free port of this machine, with a fast round and variables
// like "ROUND=1s".
func prepareServer(t testing.TB, dir string, env ...string) *process {
	s := prepare(t, dir, binary)
	s.Env = append(os.Environ(), append([]string{"ADDR=127.0.0.1:0", "ROUND=300ms"}, env...)...)
	return s
}

// start starts a server in dir and waits until it listens.
func start(t testing.TB, dir string, env ...string) *process {
	t.Helper()
	return prepareServer(t, dir, env...).launch().listens()
}

// listens waits until the server does.
func (p *process) listens() *process {
	p.t.Helper()
	p.addr = p.wait(`listening on (\S+)\n`)[1]
	return p
}

// tooLarge reports whether the server has ever had 100 MB of memory; on Linux.
func (p *process) tooLarge() bool {
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.Process.Pid))
	return regexp.MustCompile(`VmHWM:\s+\d{6,} kB`).Match(status) && !underRace()
}

// run runs the binary in dir with arguments and returns its exit status and what it has written.
func run(t testing.TB, dir string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	p := prepare(t, dir, binary, args...).launch()
	return p.exit(), p.String(), p.stderr.String()
}

// verifies wants verify to find no fault, and its second line to match pattern.
func verifies(t testing.TB, dir, pattern string, args ...string) {
	t.Helper()
	code, out, errors := run(t, dir, append([]string{"verify"}, args...)...)
	if code != 0 || !regexp.MustCompile(`^ok: \d+ blocks, head [0-9a-f]{64}\n`+pattern+"\n$").MatchString(out) {
		t.Fatalf("verify: exit status %d, %q, %q; want %q", code, out, errors, pattern)
	}
}

// connect makes a connection to the server that nobody reads from, with a receive buffer of so many bytes.
func (p *process) connect(buffer int) *net.TCPConn {
	p.t.Helper()
	dialer := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) error {
		return raw.Control(func(fd uintptr) { syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, buffer) })
	}}
	conn, err := dialer.Dial("tcp", p.addr)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { conn.Close() })
	return conn.(*net.TCPConn)
}

// terminal is a connection without netcat.
type terminal struct {
	*screen
	conn *net.TCPConn
}

func (p *process) dial() *terminal {
	p.t.Helper()
	c := &terminal{newScreen(p.t), p.connect(64 << 10)}
	go func() {
		io.Copy(c.screen, c.conn)
		c.conn.Close() // else the server lingers
		c.end()
	}()
	return c
}

func (c *terminal) types(text string) { io.WriteString(c.conn, text) }

// joins is a new terminal that has staked so much.
func (p *process) joins(stake int) *terminal {
	p.t.Helper()
	c := p.dial()
	c.types(fmt.Sprintln(stake))
	c.wait("\nyou are validator .*\n.*\n\nEnter a new BPM:")
	return c
}

// forges has c propose n blocks, one after the other, and wants it to forge them all.
func (c *terminal) forges(n int) {
	c.t.Helper()
	for range n {
		c.types("70\n")
		c.wait(`\nyou forged block \d+\n.*\n\nEnter a new BPM:`)
	}
}

// plays proposes a block now, and as soon as one is announced the next, until the conversation ends.
func (c *terminal) plays() {
	for again := true; again; again = c.await("\nwinning validator: .*\n.*\n") != nil {
		c.types("70\n")
	}
}

// netcats is the netcats to play with, each with the flag with which it half-closes when its input ends.
var netcats = [][]string{{"nc.openbsd", "-N"}, {"ncat"}}

// needs skips a test where programs are missing.
func needs(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		if _, err := exec.LookPath(name); err != nil {
			t.Skip(err) // apt-get install netcat-openbsd ncat
		}
	}
}

// netcat is a person at a netcat.
func (p *process) netcat(nc ...string) *process {
	p.t.Helper()
	host, port, _ := net.SplitHostPort(p.addr)
	return prepare(p.t, "", nc[0], append(nc[1:len(nc):len(nc)], host, port)...).launch()
}

// writeChain writes a chain file with a genesis block and so many more, all with this BPM.
func writeChain(t testing.TB, dir string, blocks int, bpm int64) (name string) {
	t.Helper()
	var file bytes.Buffer
	const timestamp = "2026-01-01T00:00:00.000000000Z"
	prevHash, validator, pulse := "", "", int64(0)
	for i := range blocks + 1 {
		hash := fmt.Sprintf("%x", sha256.Sum256(fmt.Appendf(nil, "%d\n%s\n%d\n%s\n%s\n", i, timestamp, pulse, prevHash, validator)))
		fmt.Fprintf(&file, `{"Index":%d,"Timestamp":"%s","BPM":%d,"Hash":"%s","PrevHash":"%s","Validator":"%s"}`+"\n",
			i, timestamp, pulse, hash, prevHash, validator)
		prevHash, validator, pulse = hash, strings.Repeat("a", 64), bpm
	}
	name = filepath.Join(dir, "chain.jsonl")
	if err := os.WriteFile(name, file.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	return name
}
