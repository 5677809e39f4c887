//go:build unix

package e2e

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"errors"
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
	m.Run()
	os.RemoveAll(dir)
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

// matches expects text to match pattern.
func matches(t testing.TB, text, pattern string) {
	t.Helper()
	expect(t, regexp.MustCompile(pattern).MatchString(text), "want %q:\n%s", pattern, text)
}

// terminal is the near end of a connection, or of a process. It is read only while somebody waits for what comes.
type terminal struct {
	t   testing.TB
	in  io.WriteCloser // what is typed
	out interface {    // what is shown
		io.ReadCloser
		SetReadDeadline(time.Time) error
	}
	text string // what has come
	seen int    // of text: what waits have passed over
}

func (c *terminal) types(text string) { io.WriteString(c.in, text) }

// resets ends a connection at once.
func (c *terminal) resets() {
	c.in.(*net.TCPConn).SetLinger(0)
	c.in.Close()
}

// wait waits until the terminal shows what matches pattern, behind what was waited for before, and returns the submatches.
func (c *terminal) wait(pattern string) []string {
	c.t.Helper()
	re, buf := regexp.MustCompile(pattern), make([]byte, 64<<10)
	c.out.SetReadDeadline(time.Now().Add(patience))
	for {
		if at := re.FindStringSubmatch(c.text[c.seen:]); at != nil {
			c.seen += re.FindStringIndex(c.text[c.seen:])[1]
			return at
		}
		n, err := c.out.Read(buf)
		if c.text += string(buf[:n]); n == 0 {
			c.t.Fatalf("no %q: %v\n%s", pattern, err, c.text)
		}
	}
}

// rest waits for the end, and returns all that has come.
func (c *terminal) rest() string {
	c.t.Helper()
	c.out.SetReadDeadline(time.Now().Add(patience))
	rest, err := io.ReadAll(c.out)
	if c.text += string(rest); errors.Is(err, os.ErrDeadlineExceeded) {
		c.t.Fatalf("no end:\n%s", c.text)
	}
	return c.text
}

// forges proposes n blocks, one after the other, and wants to forge them all.
func (c *terminal) forges(n int) {
	c.t.Helper()
	for range n {
		c.types("70\n")
		c.wait(`\nyou forged block \d+\n.*\n\nEnter a new BPM:`)
	}
}

// process is a program that runs: the server, a netcat, a script. Its terminal shows the standard output.
type process struct {
	*exec.Cmd
	*terminal
	stderr *terminal
	addr   string // of a server: where it listens, host:port
}

// command makes a process that is to be launched.
func command(t testing.TB, dir string, words ...string) *process {
	p := &process{Cmd: exec.Command(words[0], words[1:]...), terminal: &terminal{t: t}, stderr: &terminal{t: t}}
	p.Dir = dir
	p.in, _ = p.StdinPipe()
	out, _ := p.StdoutPipe()
	errors, _ := p.StderrPipe()
	p.out, p.stderr.out = out.(*os.File), errors.(*os.File)
	return p
}

// server makes a server that works in dir, on a free port of this machine and with a fast round. Words are as in a shell:
// settings, such as ROUND=1s, and arguments.
func server(t testing.TB, dir, words string) *process {
	s := command(t, dir, binary)
	s.Env = []string{"ADDR=127.0.0.1:0", "ROUND=300ms", "GORACE=atexit_sleep_ms=0"} // else one of -race sleeps for 1 s at its end
	for _, word := range strings.Fields(words) {
		if strings.Contains(word, "=") {
			s.Env = append(s.Env, word)
		} else {
			s.Args = append(s.Args, word)
		}
	}
	return s
}

// start starts a server in dir and waits until it listens.
func start(t testing.TB, dir, words string) *process {
	t.Helper()
	return server(t, dir, words).launch().listens()
}

// run runs the binary to its end and returns its exit status and all that it has written.
func run(t testing.TB, dir, words string) string {
	t.Helper()
	p := server(t, dir, words).launch()
	return fmt.Sprintf("%d %s%s", p.exit(), p.text, p.stderr.text)
}

// verifies wants verify to find no fault, and its second line to match pattern.
func verifies(t testing.TB, dir, pattern string) {
	t.Helper()
	matches(t, run(t, dir, "verify"), `^0 ok: \d+ blocks, head [0-9a-f]{64}\n`+pattern+"\n$")
}

// launch starts p, or skips the test if that program is missing. It is killed when the test ends.
func (p *process) launch() *process {
	p.t.Helper()
	if err := p.Start(); errors.Is(err, exec.ErrNotFound) {
		p.t.Skip(err) // apt-get install netcat-openbsd ncat
	} else if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() {
		p.Process.Kill()
		p.exit()
		fault := regexp.MustCompile("(?s)(DATA RACE|panic:).*").FindString(p.stderr.text)
		expect(p.t, fault == "", "%s", fault)
	})
	return p
}

// listens waits until the server does.
func (p *process) listens() *process {
	p.t.Helper()
	p.addr = p.wait(`listening on (\S+)\n`)[1]
	return p
}

// exit waits for the end of p and returns its exit status; -1: killed by a signal.
func (p *process) exit() int {
	p.t.Helper()
	p.rest()
	p.stderr.rest()
	p.Wait()
	return p.ProcessState.ExitCode()
}

// stop sends p a signal, or nil: ends its input (nc stays when the server has closed the connection, until the next
// Enter). On that p has to exit well.
func (p *process) stop(signal os.Signal) {
	p.t.Helper()
	if p.in.Close(); signal != nil {
		p.Process.Signal(signal)
	}
	code := p.exit()
	expect(p.t, code == 0, "%s after %v: exit status %d: %s", p.Path, signal, code, p.stderr.text)
}

// counter is a number that Linux tells of a process, in a file of /proc; 0 elsewhere.
func (p *process) counter(file, name string) (n int) {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/%s", p.Process.Pid, file))
	_, value, _ := strings.Cut(string(text), name+":")
	fmt.Sscan(value, &n)
	return n
}

// connect makes a connection to the server, with a receive buffer of so many bytes.
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

// dial makes a terminal without netcat.
func (p *process) dial() *terminal {
	p.t.Helper()
	conn := p.connect(64 << 10)
	return &terminal{t: p.t, in: conn, out: conn}
}

// joins is a new terminal that has staked so much.
func (p *process) joins(stake int) *terminal {
	p.t.Helper()
	c := p.dial()
	c.types(fmt.Sprintln(stake))
	c.wait("\nyou are validator .*\n.*\n\nEnter a new BPM:")
	return c
}

// robot adds a validator who proposes a block now, and as soon as one is announced the next.
func (p *process) robot(stake int) {
	p.t.Helper()
	conn := p.connect(64 << 10)
	fmt.Fprintf(conn, "%d\n70\n", stake)
	go func() {
		for in := bufio.NewScanner(conn); in.Scan(); {
			if strings.HasPrefix(in.Text(), "winning validator: ") {
				io.WriteString(conn, "70\n")
			}
		}
	}()
}

// netcat is a person at a netcat: its name and flags.
func (p *process) netcat(nc string) *process {
	p.t.Helper()
	words := strings.Fields(nc + " " + strings.ReplaceAll(p.addr, ":", " "))
	return command(p.t, "", words...).launch()
}

// writeChain writes a chain file with a genesis block and so many more, all with this BPM.
func writeChain(dir string, blocks int, bpm int64) {
	var file bytes.Buffer
	const timestamp = "2026-01-01T00:00:00.000000000Z"
	prevHash, validator, pulse := "", "", int64(0)
	for i := range blocks + 1 {
		hash := fmt.Sprintf("%x", sha256.Sum256(fmt.Appendf(nil, "%d\n%s\n%d\n%s\n%s\n", i, timestamp, pulse, prevHash, validator)))
		fmt.Fprintf(&file, `{"Index":%d,"Timestamp":"%s","BPM":%d,"Hash":"%s","PrevHash":"%s","Validator":"%s"}`+"\n",
			i, timestamp, pulse, hash, prevHash, validator)
		prevHash, validator, pulse = hash, strings.Repeat("a", 64), bpm
	}
	os.WriteFile(filepath.Join(dir, "chain.jsonl"), file.Bytes(), 0o644)
}
