//go:build unix

package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience bounds every wait, so that a hang is a failure; nothing is expected to take a
// certain time.
const patience = 60 * time.Second

// binary is the server under test.
var binary string

func TestMain(m *testing.M) {
	os.Setenv("GORACE", "atexit_sleep_ms=0") // else every process of a -race build sleeps for a second at its end
	dir, err := os.MkdirTemp("", "e2e")
	if err == nil {
		binary = filepath.Join(dir, "proofofstake")
		build := exec.Command("go", "build", raceFlag, "-o", binary, "proofofstake")
		build.Stderr = os.Stderr
		err = build.Run()
	}
	code := 1
	if err != nil {
		fmt.Fprintln(os.Stderr, "building the server:", err)
	} else {
		code = m.Run()
	}
	os.RemoveAll(dir)
	os.Exit(code)
}

// screen collects what a process or a connection writes.
type screen struct {
	mu     sync.Mutex
	text   []byte
	ended  bool
	change chan struct{} // closed at the next change
}

func newScreen() *screen { return &screen{change: make(chan struct{})} }

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.text = append(s.text, p...)
	close(s.change)
	s.change = make(chan struct{})
	return len(p), nil
}

// end says that no more will come.
func (s *screen) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	close(s.change)
	s.change = make(chan struct{})
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return string(s.text)
}

// wait waits until the screen shows what matches pattern n times, and returns the submatches of the last.
func (s *screen) wait(t testing.TB, pattern string, n int) []string {
	t.Helper()
	re := regexp.MustCompile(pattern)
	deadline := time.After(patience)
	for {
		s.mu.Lock()
		found := re.FindAllStringSubmatch(string(s.text), -1)
		change, ended := s.change, s.ended
		s.mu.Unlock()
		if len(found) >= n {
			return found[n-1]
		}
		if ended {
			t.Fatalf("ended without %q for the %d. time:\n%s", pattern, n, s)
		}
		select {
		case <-change:
		case <-deadline:
			t.Fatalf("no %q for the %d. time:\n%s", pattern, n, s)
		}
	}
}

// server is a running server.
type server struct {
	t      testing.TB
	cmd    *exec.Cmd
	stdout *screen
	stderr *screen
	addr   string // where it listens, host:port
	dir    string
	exited chan error
}

// launch starts the server in dir with variables like "ROUND=1s", and does not wait for it. wrap, if not
// empty, is a shell command in front of it.
func launch(t testing.TB, dir, wrap string, env ...string) *server {
	t.Helper()
	s := &server{t: t, dir: dir, stdout: newScreen(), stderr: newScreen(), exited: make(chan error, 1)}
	s.cmd = exec.Command(binary)
	if wrap != "" {
		s.cmd = exec.Command("sh", "-c", wrap+"; exec "+binary)
	}
	s.cmd.Dir = dir
	s.cmd.Env = append(os.Environ(), env...)
	s.cmd.Stdout, s.cmd.Stderr = s.stdout, s.stderr
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		err := s.cmd.Wait()
		s.stdout.end()
		s.stderr.end()
		s.exited <- err
	}()
	t.Cleanup(func() {
		s.cmd.Process.Kill()
		select {
		case <-s.exited:
		case <-time.After(patience):
			t.Error("the server cannot be killed")
		}
		if text := s.stderr.String(); strings.Contains(text, "DATA RACE") || strings.Contains(text, "panic:") {
			t.Errorf("the server says:\n%s", text)
		}
	})
	return s
}

// start starts a server on a free port of this machine, with a fast round, in a folder of its own.
func start(t testing.TB, env ...string) *server {
	t.Helper()
	return startIn(t, t.TempDir(), env...)
}

func startIn(t testing.TB, dir string, env ...string) *server {
	t.Helper()
	s := launch(t, dir, "", append([]string{"ADDR=127.0.0.1:0", "ROUND=300ms"}, env...)...)
	s.listens()
	return s
}

// listens waits until the server does.
func (s *server) listens() {
	s.t.Helper()
	s.addr = s.stdout.wait(s.t, `listening on (\S+)\n`, 1)[1]
}

// exit waits for the end of the server and returns its exit status; -1: killed by a signal.
func (s *server) exit() int {
	s.t.Helper()
	select {
	case err := <-s.exited:
		s.exited <- err
		return s.cmd.ProcessState.ExitCode()
	case <-time.After(patience):
		s.t.Fatal("the server does not end")
		return 0
	}
}

// terminal is a connection without netcat.
type terminal struct {
	*screen
	conn *net.TCPConn
}

func (s *server) dial() *terminal {
	s.t.Helper()
	conn, err := net.Dial("tcp", s.addr)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { conn.Close() })
	c := &terminal{screen: newScreen(), conn: conn.(*net.TCPConn)}
	go func() {
		io.Copy(c.screen, conn)
		c.end()
	}()
	return c
}

func (c *terminal) types(text string) { io.WriteString(c.conn, text) }

// netcats calls test with each netcat that there is: its path and the flags with which it half-closes
// when its input ends.
func netcats(t *testing.T, test func(t *testing.T, nc string, halfClose ...string)) {
	for _, nc := range []struct {
		name  string
		flags []string
	}{{"nc.openbsd", []string{"-N"}}, {"ncat", nil}} {
		t.Run(nc.name, func(t *testing.T) {
			path, err := exec.LookPath(nc.name)
			if err != nil {
				t.Skipf("%s is not installed (apt-get install netcat-openbsd ncat)", nc.name)
			}
			test(t, path, nc.flags...)
		})
	}
}

// person sits at a netcat.
type person struct {
	*screen
	stdin io.WriteCloser
	cmd   *exec.Cmd
	gone  chan struct{} // closed when netcat has exited
}

func (s *server) netcat(t *testing.T, nc string, flags ...string) *person {
	t.Helper()
	host, port, _ := net.SplitHostPort(s.addr)
	p := &person{screen: newScreen(), cmd: exec.Command(nc, append(flags, host, port)...), gone: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = p.screen, os.Stderr
	var err error
	if p.stdin, err = p.cmd.StdinPipe(); err == nil {
		err = p.cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		p.cmd.Wait()
		p.end()
		close(p.gone)
	}()
	t.Cleanup(func() { p.cmd.Process.Kill(); <-p.gone })
	return p
}

func (p *person) types(text string) { io.WriteString(p.stdin, text) }

// exits ends the person's input and waits until netcat has exited. (While somebody may still type, nc
// stays when the server has closed the connection, until the next Enter.)
func (p *person) exits(t *testing.T) {
	t.Helper()
	p.stdin.Close()
	select {
	case <-p.gone:
	case <-time.After(patience):
		t.Fatalf("netcat does not exit: %s", p)
	}
}

// An evening with three terminals, as README.md tells it.
func TestInteractiveNetcat(t *testing.T) {
	t.Parallel()
	netcats(t, func(t *testing.T, nc string, halfClose ...string) {
		s := start(t, "BROADCAST=400ms")
		alice, bob, carol := s.netcat(t, nc), s.netcat(t, nc), s.netcat(t, nc, halfClose...)
		for _, p := range []*person{alice, bob, carol} {
			p.wait(t, `^Enter token balance:`, 1)
		}
		alice.types("100\n")
		bob.types("25\n")
		address := alice.wait(t, "\nyou are validator ([0-9a-f]{64}) with 100 tokens staked\n\nEnter a new BPM:", 1)[1]
		bob.wait(t, "with 25 tokens staked\n\nEnter a new BPM:", 1)
		s.stdout.wait(t, "validators: 2 with 125 tokens staked\n", 1)
		alice.types("72\n")
		alice.wait(t, "\nblock 1 proposed with BPM 72; the winner is drawn in [0-9.]+m?s\n\nEnter a new BPM:", 1)
		for _, p := range []*person{alice, bob, carol} {
			p.wait(t, "\nwinning validator: "+address+"\n", 1)
		}
		alice.wait(t, "\nyou forged block 1\n\nEnter a new BPM:", 1)
		carol.wait(t, "\nwinning validator: "+address+"\nEnter token balance:", 1)
		s.stdout.wait(t, "block 1 forged by "+address+`: ticket \d+ of 100 from 1 proposals, stake 100 \(100.0%\)`, 1)
		chain := bob.wait(t, `\n(\[\{"Index":0.*\{"Index":1.*\}\])\n\nEnter a new BPM:`, 1)[1]
		verifyByHand(t, chain)
		bob.types("abc\n")
		bob.wait(t, "\nslashed: \"abc\" is not a pulse; 25 tokens forfeited\n", 1)
		bob.exits(t)
		carol.exits(t) // by Ctrl-D
		s.cmd.Process.Signal(os.Interrupt)
		alice.wait(t, "\nthe server is shutting down\n$", 1)
		alice.exits(t)
		if code := s.exit(); code != 0 {
			t.Errorf("exit status %d: %s", code, s.stderr)
		}
	})
}

// verifyByHand checks the hash of every block with printf and sha256sum, as README.md tells people to, and the links.
func verifyByHand(t *testing.T, chain string) {
	t.Helper()
	var blocks []struct {
		Index     int
		Timestamp string
		BPM       int
		Hash      string
		PrevHash  string
		Validator string
	}
	if err := json.Unmarshal([]byte(chain), &blocks); err != nil {
		t.Fatal(err)
	}
	prevHash := ""
	for i, b := range blocks {
		cmd := exec.Command("sh", "-c", `printf '%s\n' "$index" "$timestamp" "$bpm" "$prevhash" "$validator" | sha256sum`)
		cmd.Env = append(os.Environ(), fmt.Sprint("index=", b.Index), "timestamp="+b.Timestamp, fmt.Sprint("bpm=", b.BPM),
			"prevhash="+b.PrevHash, "validator="+b.Validator)
		out, err := cmd.Output()
		if err != nil {
			t.Skipf("no sha256sum: %v", err)
		}
		if sum := strings.Fields(string(out))[0]; sum != b.Hash || b.PrevHash != prevHash || b.Index != i {
			t.Errorf("block %d: sha256sum says %s, the block %+v", i, sum, b)
		}
		prevHash = b.Hash
	}
}

// printf '100\n72\n' | nc -N localhost 9000 prints who won and exits.
func TestPipedNetcat(t *testing.T) {
	t.Parallel()
	netcats(t, func(t *testing.T, nc string, halfClose ...string) {
		s := start(t)
		p := s.netcat(t, nc, halfClose...)
		p.types("100\n72\n")
		p.exits(t)
		want := regexp.MustCompile("^Enter token balance:\nyou are validator ([0-9a-f]{64}) with 100 tokens staked\n\nEnter a new BPM:" +
			"\nblock 1 proposed with BPM 72; the winner is drawn in [0-9.]+m?s\n\nEnter a new BPM:" +
			"\nwinning validator: ([0-9a-f]{64})\nyou forged block 1\n$")
		if m := want.FindStringSubmatch(p.String()); m == nil || m[1] != m[2] {
			t.Errorf("netcat shows %q", p)
		}
		if !p.cmd.ProcessState.Success() {
			t.Errorf("netcat: %v", p.cmd.ProcessState)
		}
	})
}

// A bad setting ends in one clear line and exit status 1.
func TestBadSettings(t *testing.T) {
	t.Parallel()
	s := start(t)
	_, port, _ := net.SplitHostPort(s.addr)
	for setting, want := range map[string]string{
		"ADDR=x":                               `ADDR="x".*want a port`,
		"ADDR=127.0.0.1:" + port:               `ADDR="127.0.0.1:` + port + `".*address already in use.*want a free port`,
		"ROUND=0":                              `ROUND="0".*want a duration`,
		"ROUND=abc":                            `ROUND="abc".*want a duration`,
		"BROADCAST=-1s":                        `BROADCAST="-1s".*want a duration`,
		"BROADCAST_BLOCKS=many":                `BROADCAST_BLOCKS="many".*want a number`,
		"MAX_CLIENTS=-1":                       `MAX_CLIENTS="-1".*want a number`,
		"CHAIN_FILE=/none/x":                   `CHAIN_FILE="/none/x".*no such file or directory`,
		"CHAIN_FILE=/":                         `CHAIN_FILE="/".*is a directory`,
		"CHAIN_FILE=/dev/full":                 `CHAIN_FILE="/dev/full".*not a regular file`,
		"CHAIN_FILE=" + s.dir + "/chain.jsonl": `CHAIN_FILE=".*chain.jsonl".*in use by another process`,
	} {
		bad := launch(t, t.TempDir(), "", "ADDR=127.0.0.1:0", setting)
		if code := bad.exit(); code != 1 {
			t.Errorf("%s: exit status %d", setting, code)
		}
		if text := bad.stderr.String(); strings.Count(text, "\n") != 1 || !regexp.MustCompile(want).MatchString(text) {
			t.Errorf("%s: %q, want %q", setting, text, want)
		}
	}
}

// Settings come from .env; the environment wins.
func TestDotEnv(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	os.WriteFile(filepath.Join(dir, ".env"), []byte("ADDR=127.0.0.1:0\nROUND=abc\nCHAIN_FILE=my.jsonl\n"), 0o644)
	s := launch(t, dir, "")
	if code := s.exit(); code != 1 || !strings.Contains(s.stderr.String(), `ROUND="abc"`) {
		t.Errorf("exit status %d: %s", code, s.stderr)
	}
	s = launch(t, dir, "", "ROUND=1h")
	s.listens()
	if _, err := os.Stat(filepath.Join(dir, "my.jsonl")); err != nil {
		t.Error(err)
	}
	os.WriteFile(filepath.Join(dir, ".env"), []byte("what is this\n"), 0o644)
	s = launch(t, dir, "")
	if code := s.exit(); code != 1 || !strings.Contains(s.stderr.String(), ".env") {
		t.Errorf("exit status %d: %s", code, s.stderr)
	}
}

// verify from the command line, also while the server writes; unknown words get the usage.
func TestVerifyCommand(t *testing.T) {
	t.Parallel()
	s := start(t, "ROUND=1ms")
	c := s.dial()
	c.types("1\n")
	run := func(args ...string) (code int, out, errors string) {
		var stdout, stderr bytes.Buffer
		cmd := exec.Command(binary, args...)
		cmd.Dir, cmd.Stdout, cmd.Stderr = s.dir, &stdout, &stderr
		cmd.Run()
		return cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()
	}
	for i := range 20 {
		c.types("70\n")
		c.wait(t, `proposed with`, i+1)
		if code, out, errors := run("verify"); code != 0 || !regexp.MustCompile(`^ok: \d+ blocks, head [0-9a-f]{64}\n$`).MatchString(out) {
			t.Errorf("verify: exit status %d, %q, %q", code, out, errors)
		}
	}
	file, _ := os.ReadFile(filepath.Join(s.dir, "chain.jsonl"))
	lines := bytes.SplitAfter(file, []byte("\n"))
	lines[1] = bytes.Replace(lines[1], []byte(`"BPM":70`), []byte(`"BPM":71`), 1)
	os.WriteFile(filepath.Join(s.dir, "bad.jsonl"), bytes.Join(lines, nil), 0o644)
	if code, out, errors := run("verify", "bad.jsonl"); code != 1 || out != "" || !strings.HasPrefix(errors, "bad.jsonl: line 2: wrong hash") {
		t.Errorf("verify of a bad file: exit status %d, %q, %q", code, out, errors)
	}
	for _, args := range [][]string{{"help"}, {"-x"}, {"verify", "a", "b"}, {"serve"}} {
		if code, out, errors := run(args...); code != 2 || out != "" || !strings.HasPrefix(errors, "usage:") {
			t.Errorf("%v: exit status %d, %q, %q", args, code, out, errors)
		}
	}
}

// Ctrl-C and SIGTERM end the server within its limit although terminals are stuck: they have more waiting
// for them than the kernel takes. A second Ctrl-C ends it at once.
func TestShutdownWithStuckTerminals(t *testing.T) {
	t.Parallel()
	for _, signal := range []os.Signal{os.Interrupt, syscall.SIGTERM} {
		for _, twice := range []bool{false, true} {
			t.Run(fmt.Sprint(signal, " twice:", twice), func(t *testing.T) {
				t.Parallel()
				s := start(t, "ROUND=10ms", "BROADCAST=1ms")
				forger := s.dial()
				forger.types("1\n")
				for i := range 20 { // so that broadcasts are not too short
					forger.types("70\n")
					forger.wait(t, "you forged", i+1)
				}
				small := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) error {
					return raw.Control(func(fd uintptr) { syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, 4096) })
				}}
				for range 10 {
					conn, err := small.Dial("tcp", s.addr) // and nobody reads from it
					if err != nil {
						t.Fatal(err)
					}
					defer conn.Close()
				}
				time.Sleep(3 * time.Second) // for the kernel's buffers to fill; the cut comes only later
				begun := time.Now()
				s.cmd.Process.Signal(signal)
				forger.wait(t, "\nthe server is shutting down\n", 1)
				if twice {
					s.cmd.Process.Signal(signal)
				}
				code := s.exit()
				took := time.Since(begun)
				switch {
				case twice && (code != -1 || took > 3*time.Second):
					t.Errorf("after the second signal: exit status %d after %v", code, took)
				case !twice && code != 0:
					t.Errorf("exit status %d: %s", code, s.stderr)
				case !twice && took < 3*time.Second:
					t.Errorf("ended after %v: no terminal was stuck", took)
				case took > 6*time.Second: // the promise is 5 s; one more is for a machine that is busy
					t.Errorf("ended after %v", took)
				}
			})
		}
	}
}

// A console that takes no output any more, as after Ctrl-S, holds up nobody: rounds go on, and the server
// can be stopped. The window's closing (SIGHUP) stops it like Ctrl-C.
func TestStuckConsole(t *testing.T) {
	t.Parallel()
	out, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	defer in.Close()
	// The pipe is full but for the few lines that tell where the server listens.
	in.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
	n, _ := in.Write(make([]byte, 1<<20))
	io.ReadFull(out, make([]byte, 4096))
	if n < 8192 {
		t.Skipf("a pipe of %d bytes", n)
	}
	s := startUnseen(t, in)
	s.connects()
	c := s.dial()
	c.types("1\n")
	for i := range 100 { // far more than a page of console
		c.types("70\n")
		c.wait(t, "you forged", i+1)
	}
	s.cmd.Process.Signal(syscall.SIGHUP)
	c.wait(t, "\nthe server is shutting down\n$", 1)
	if code := s.exit(); code != 0 {
		t.Errorf("exit status %d", code)
	}
}

// startUnseen starts a server whose console is the file out.
func startUnseen(t *testing.T, out *os.File) *server {
	t.Helper()
	addr := "127.0.0.1:" + freePort(t)
	s := &server{t: t, cmd: exec.Command(binary), addr: addr, exited: make(chan error, 1)}
	s.cmd.Dir = t.TempDir()
	s.cmd.Env = append(os.Environ(), "ADDR="+addr, "ROUND=5ms")
	s.cmd.Stdout, s.cmd.Stderr = out, out
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { s.exited <- s.cmd.Wait() }()
	t.Cleanup(func() { s.cmd.Process.Kill(); s.exit() })
	return s
}

// connects waits until the server lets somebody in.
func (s *server) connects() {
	s.t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		if conn, err := net.Dial("tcp", s.addr); err == nil {
			conn.Close()
			return
		}
		if time.Now().After(deadline) {
			s.t.Fatal("the server does not listen")
		}
	}
}

// freePort returns a port that was free a moment ago.
func freePort(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	return port
}

// Nobody has to look at the console: its reader may go.
func TestConsoleGone(t *testing.T) {
	t.Parallel()
	out, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	s := startUnseen(t, in)
	in.Close()
	io.ReadFull(out, make([]byte, 1))
	out.Close() // like head -c 1
	s.connects()
	c := s.dial()
	c.types("1\n70\n")
	c.wait(t, "you forged block 1\n", 1)
}

// MAX_CLIENTS: who is one too many hears so; when one leaves there is room again.
func TestFull(t *testing.T) {
	t.Parallel()
	s := start(t, "MAX_CLIENTS=2")
	a, b := s.dial(), s.dial()
	a.wait(t, "Enter", 1)
	b.wait(t, "Enter", 1)
	netcats(t, func(t *testing.T, nc string, halfClose ...string) {
		p := s.netcat(t, nc, halfClose...)
		p.wait(t, "^the server is full, try again later\n$", 1)
		p.exits(t)
	})
	c := s.dial()
	c.wait(t, "^the server is full, try again later\n$", 1)
	for range 10 { // also if it has sent what nobody reads
		talker := s.dial()
		talker.types(strings.Repeat("100\n", 20000))
		talker.wait(t, "^the server is full, try again later\n$", 1)
	}
	a.conn.Close()
	for deadline := time.Now().Add(patience); ; {
		d := s.dial()
		if m := d.wait(t, "^(Enter|the server is full)", 1); m[1] == "Enter" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("no room, though one has left")
		}
	}
}

// Out of file descriptors the server goes on, those connected notice nothing, and the console says so
// once, and again when it is over.
func TestOutOfFiles(t *testing.T) {
	t.Parallel()
	s := launch(t, t.TempDir(), "ulimit -n 40", "ADDR=127.0.0.1:0", "ROUND=100ms")
	s.listens()
	first := s.dial()
	first.types("1\n")
	first.wait(t, "Enter a new BPM:", 1)
	var crowd []*terminal
	for range 60 {
		crowd = append(crowd, s.dial())
	}
	s.stderr.wait(t, "cannot accept terminals: .*too many open files", 1)
	for i := range 20 { // time for more errors, and life goes on
		first.types("70\n")
		first.wait(t, "you forged", i+1)
	}
	if text := s.stderr.String(); strings.Count(text, "\n") != 1 {
		t.Errorf("the console says\n%s", text)
	}
	for _, c := range crowd {
		c.conn.Close()
	}
	s.stderr.wait(t, "accepting terminals again\n$", 1)
	s.dial().wait(t, "Enter token balance:", 1)
}

// The last words arrive although the client has sent a lot that nobody reads.
func TestLastWordsArrive(t *testing.T) {
	t.Parallel()
	s := start(t)
	for range 20 {
		c := s.dial()
		c.types("5\nabc\n" + strings.Repeat("70\n", 20000))
		c.wait(t, "slashed: \"abc\" is not a pulse; 5 tokens forfeited\n$", 1)
	}
}

// What else comes to an open port.
func TestStrangers(t *testing.T) {
	t.Parallel()
	s := start(t)
	player := s.dial()
	player.types("1\n")
	for range 200 { // a port scanner
		conn, err := net.Dial("tcp", s.addr)
		if err != nil {
			t.Fatal(err)
		}
		if rand.IntN(2) == 0 {
			conn.(*net.TCPConn).SetLinger(0) // ends in a reset
		}
		conn.Close()
	}
	browser := s.dial()
	browser.types("GET / HTTP/1.1\r\nHost: localhost:9000\r\nUser-Agent: x\r\nAccept: */*\r\n\r\n")
	browser.wait(t, "too many tries, goodbye\n$", 1)
	tls := s.dial()
	tls.types("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + strings.Repeat("\x00\xff\n", 200))
	tls.wait(t, "too many tries, goodbye\n$", 1)
	endless := s.dial()
	endless.types("5\n" + strings.Repeat("x", 100_000))
	endless.wait(t, "slashed", 1)
	player.types("70\n")
	player.wait(t, "you forged block 1\n", 1)
	if text := s.stderr.String(); text != "" {
		t.Errorf("the console says\n%s", text)
	}
}

// kill -9 at random moments: every winner that any terminal has heard of is in the chain after a restart.
func TestKill(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	heard := map[int]string{} // winner of each block
	var blocks []string       // validators of the chain before
	for range 20 {
		s := startIn(t, dir, "ROUND=20ms", "BROADCAST=10ms")
		var crowd []*terminal
		for i := range 4 {
			c := s.dial()
			c.types(fmt.Sprintf("%d\n", i+1))
			c.wait(t, "tokens staked", 1)
			crowd = append(crowd, c)
		}
		for _, c := range crowd { // all are there before the first round is won
			go func() {
				for { // until the server is gone
					if _, err := io.WriteString(c.conn, "70\n"); err != nil {
						return
					}
					time.Sleep(15 * time.Millisecond)
				}
			}()
		}
		crowd[0].wait(t, "winning validator", 1+rand.IntN(4))
		time.Sleep(time.Duration(rand.IntN(25)) * time.Millisecond)
		s.cmd.Process.Kill()
		s.exit()
		first := len(blocks)
		if first == 0 {
			first = 1 // the genesis block
		}
		for _, c := range crowd {
			c.wait(t, "$", 1)
			for i, m := range regexp.MustCompile(`winning validator: ([0-9a-f]{64})\n`).FindAllStringSubmatch(c.String(), -1) {
				if was := heard[first+i]; was != "" && was != m[1] {
					t.Fatalf("block %d was won by %s and by %s", first+i, was, m[1])
				}
				heard[first+i] = m[1]
			}
		}
		verify := exec.Command(binary, "verify", filepath.Join(dir, "chain.jsonl"))
		if out, err := verify.CombinedOutput(); err != nil || !strings.HasPrefix(string(out[bytes.Index(out, []byte("ok:")):]), "ok:") {
			t.Fatalf("verify: %v, %s", err, out)
		}
		file, err := os.ReadFile(filepath.Join(dir, "chain.jsonl"))
		if err != nil {
			t.Fatal(err)
		}
		before := blocks
		blocks = nil
		for _, m := range regexp.MustCompile(`"Validator":"([0-9a-f]*)"\}\n`).FindAllStringSubmatch(string(file), -1) {
			blocks = append(blocks, m[1])
		}
		if !slices.Equal(before, blocks[:len(before)]) {
			t.Fatal("the chain before the restart is not the start of the chain after it")
		}
		for block, winner := range heard {
			if block >= len(blocks) || blocks[block] != winner {
				t.Fatalf("%s was heard to win block %d, and it is not in the chain", winner, block)
			}
		}
	}
	if len(heard) < 20 {
		t.Errorf("only %d winners were heard of", len(heard))
	}
}

// A full disk: the block is not announced, the console says why, the file stays whole, and it goes on
// by itself when there is room again.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" || os.Getuid() != 0 {
		t.Skip("only root may mount a tiny disk")
	}
	disk := t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk).CombinedOutput(); err != nil {
		t.Skipf("cannot mount a tiny disk: %s", out)
	}
	t.Cleanup(func() { exec.Command("umount", disk).Run() })
	chain := filepath.Join(disk, "chain.jsonl")
	s := start(t, "ROUND=20ms", "CHAIN_FILE="+chain)
	c := s.dial()
	c.types("5\n70\n")
	c.wait(t, "you forged block 1\n", 1)
	filler, err := os.Create(filepath.Join(disk, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	io.Copy(filler, bytes.NewReader(make([]byte, 1<<20)))
	filler.Close()
	// What is free in the file's last page is still used.
	for i := 0; !strings.Contains(s.stderr.String(), "no space left on device"); i++ {
		if i == 2000 {
			t.Fatal("the disk does not fill up")
		}
		c.types("70\n")
		time.Sleep(5 * time.Millisecond)
	}
	s.stderr.wait(t, `block \d+ is not forged: cannot keep it: .*no space left on device; its proposals stay for the next draw\n`, 1)
	open := regexp.MustCompile(`block (\d+) (is already )?proposed`).FindAllStringSubmatch(c.String(), -1)
	block, _ := strconv.Atoi(open[len(open)-1][1])
	before := c.String()
	if strings.Contains(before, fmt.Sprintf("you forged block %d\n", block)) {
		t.Errorf("announced, though not kept: %s", before)
	}
	if out, err := exec.Command(binary, "verify", chain).CombinedOutput(); err != nil || !strings.Contains(string(out), fmt.Sprintf("ok: %d blocks", block)) || strings.Contains(string(out), "without its end") {
		t.Errorf("on the full disk: %v, %s; want %d blocks", err, out, block)
	}
	os.Remove(filepath.Join(disk, "filler"))
	c.wait(t, fmt.Sprintf("you forged block %d\n", block), 1)
	s.stderr.wait(t, "blocks can be kept again", 1)
	s.cmd.Process.Signal(os.Interrupt)
	s.exit()
	if out, err := exec.Command(binary, "verify", chain).CombinedOutput(); err != nil {
		t.Errorf("afterwards: %v, %s", err, out)
	}
}
