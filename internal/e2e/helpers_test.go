//go:build linux

package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The messages that tests look for, as regular expressions. Everything else about a message is up to main_test.go.
const (
	stakePrompt = "Enter token balance:"
	bpmPrompt   = `\nEnter a new .+:`
	joined      = `\n.*\b([0-9a-f]{64})\b.*\n` + sealed + `(?:.+\n)?`
	sealed      = `draw (\d+) seal: ([0-9a-f]{64})\n`
	proposed    = `\nyou proposed block (\d+) with \w+ (-?\d+): your tickets? (?:is|are) (\d+)(?: to (\d+))?; .*\n`
	counted     = `\n.*your tickets? (?:is|are) .*\n` // the same in other words
	won         = `\nwinning validator: ([0-9a-f]{64})\nblock (\d+), \w+ (-?\d+): (.*)\ndraw \d+ secret: (.*)\n`
	forged      = `you .*block \d+\n`
	isSlashed   = `\n.*slashed.*\n(?:to play again, .*\n)?`
	goodbye     = `\ngoodbye\n`
	shutdown    = `\nthe server .*\n`
	verified    = `^0 ok: \d+ blocks?, head [0-9a-f]{64}\nok: \d+ draws?(?:; 1 draw not announced .*)?\n` +
		`(?:if you noted this seal, no block or draw before draw \d+ has changed since:\n` + sealed + `)?2> $`
)

const (
	notABPM = "abc"            // what a validator types to be slashed
	timeout = 60 * time.Second // bounds every wait, so that a hang is a failure
)

// binary is the name of the server under test, which TestMain builds.
var binary string

// TestMain builds the server, with the race detector if the tests have it, and runs the tests.
func TestMain(m *testing.M) {
	flag.Parse()
	flag.Set("test.parallel", "100") // they mostly wait
	// Child processes ignore the signals that are ignored here, as in the background of a shell, unless they are caught.
	for _, s := range []os.Signal{os.Interrupt, syscall.SIGHUP} {
		if signal.Ignored(s) {
			signal.Notify(make(chan os.Signal, 1), s)
		}
	}
	dir, _ := os.MkdirTemp("", "e2e")
	binary = filepath.Join(dir, "proofofstake")
	info, _ := debug.ReadBuildInfo()
	race := slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
	out, err := exec.Command("go", "build", fmt.Sprint("-race=", race), "-o", binary, "proofofstake").CombinedOutput()
	if err != nil {
		log.Fatalf("building the server: %v\n%s", err, out)
	}
	m.Run()
	os.RemoveAll(dir)
}

// expect marks the test as failed unless ok.
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

// stream is a network connection or a pipe.
type stream interface {
	io.ReadWriteCloser
	SetDeadline(time.Time) error
}

// testClient is the near end of a connection, or of the standard streams of a process. It reads only in wait and rest.
type testClient struct {
	t       testing.TB
	in, out stream // what is typed and what is shown
	text    string // everything shown so far
	seen    int    // the length of the text that waits have passed
}

// types types text, which is too short to block. Errors are ignored: the other end may have closed.
func (c *testClient) types(text string) { io.WriteString(c.in, text) }

// wait waits for text that matches pattern, after what earlier calls waited for. It returns the submatches.
func (c *testClient) wait(pattern string) []string {
	c.t.Helper()
	match := c.waitOrEnd(pattern)
	if match == nil {
		c.t.Fatalf("no match for %q within %v:\n%s", pattern, timeout, c.text)
	}
	return match
}

// waitOrEnd is wait for output that may end before. Then it returns nil.
func (c *testClient) waitOrEnd(pattern string) (match []string) {
	re, buf := regexp.MustCompile(pattern), make([]byte, 64<<10)
	c.out.SetDeadline(time.Now().Add(timeout))
	for n := 1; n > 0; c.text += string(buf[:n]) {
		unseen := c.text[c.seen:]
		if at := re.FindStringIndex(unseen); at != nil {
			c.seen += at[1]
			return re.FindStringSubmatch(unseen)
		}
		n, _ = c.out.Read(buf)
	}
	return nil
}

// rest waits for the end of the output, and returns everything shown.
func (c *testClient) rest() string {
	c.t.Helper()
	c.out.SetDeadline(time.Now().Add(timeout))
	rest, err := io.ReadAll(c.out)
	c.text += string(rest)
	expect(c.t, !errors.Is(err, os.ErrDeadlineExceeded), "the output did not end:\n%s", c.text)
	return c.text
}

// forges proposes n blocks, one after the other, and expects to forge them all.
func (c *testClient) forges(n int) {
	c.t.Helper()
	for range n {
		c.types("50\n")
		c.wait("\n" + forged + sealed + bpmPrompt)
	}
}

// process is a running program: the server, a netcat, or a script. Its testClient has the standard input and output.
type process struct {
	*exec.Cmd
	*testClient
	stderr *testClient
	addr   string // host:port where a server listens
}

// command returns a process that has not been launched. It is killed when the test ends, or before that if it takes too
// long.
func command(t testing.TB, dir string, args ...string) *process {
	ctx, cancel := context.WithTimeout(t.Context(), 2*timeout)
	t.Cleanup(cancel)
	p := &process{testClient: &testClient{t: t}, stderr: &testClient{t: t}}
	p.Cmd = exec.CommandContext(ctx, args[0], args[1:]...)
	p.Dir, p.SysProcAttr = dir, &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // when the tests end
	in, _ := p.StdinPipe()
	out, _ := p.StdoutPipe()
	stderr, _ := p.StderrPipe()
	p.in, p.out, p.stderr.out = in.(stream), out.(stream), stderr.(stream)
	return p
}

// server returns a server that has not been launched. It works in dir, on a free port, with short rounds. Words are
// as in a shell: settings, such as ROUND=1s, and arguments.
func server(t testing.TB, dir, words string) *process {
	s := command(t, dir, binary)
	// By default, a program built with -race sleeps for 1 s before it exits.
	s.Env = []string{"ADDR=127.0.0.1:0", "ROUND=300ms", "GORACE=atexit_sleep_ms=0"}
	for _, word := range strings.Fields(words) {
		if strings.Contains(word, "=") {
			s.Env = append(s.Env, word)
		} else {
			s.Args = append(s.Args, word)
		}
	}
	return s
}

// trace makes p run under strace, which logs in strace.log, or skips the test if that does not work here.
func (p *process) trace(options ...string) *process {
	p.t.Helper()
	if err := exec.Command("strace", "-o", "/dev/null", "true").Run(); err != nil {
		p.t.Skip("strace: ", err) // apt-get install strace
	}
	p.Path, _ = exec.LookPath("strace")
	args := strings.Fields("strace -D -f -y --quiet=all -e signal=none -A -o strace.log --seccomp-bpf")
	p.Args = slices.Concat(args, options, p.Args)
	return p
}

// run runs the server's program to its end and returns the result.
func run(t testing.TB, dir, words string) string {
	t.Helper()
	return server(t, dir, words).launch().result()
}

// launch starts p, or skips the test if the program is missing.
func (p *process) launch() *process {
	p.t.Helper()
	if err := p.Start(); errors.Is(err, exec.ErrNotFound) {
		p.t.Skip(err) // apt-get install netcat-openbsd ncat
	} else if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() {
		p.result()
		crash := regexp.MustCompile("(?s)(DATA RACE|panic:).*").FindString(p.stderr.text)
		expect(p.t, crash == "", "%s", crash)
	})
	return p
}

// start launches a server and waits until it listens.
func (p *process) start() *process {
	p.t.Helper()
	p.addr = p.launch().wait(`listening on (\S+)\n`)[1]
	return p
}

// result waits for the end of p and returns "<exit status> <output>2> <errors>". The status is -1 if a signal ended p.
func (p *process) result() string {
	p.t.Helper()
	p.rest()
	p.stderr.rest()
	p.Wait()
	return fmt.Sprintf("%d %s2> %s", p.ProcessState.ExitCode(), p.text, p.stderr.text)
}

// stop sends p a signal, or ends its input if signal is nil (a netcat stays until then). It expects exit status 0.
func (p *process) stop(signal os.Signal) {
	p.t.Helper()
	if p.in.Close(); signal != nil {
		p.Process.Signal(signal)
	}
	matches(p.t, p.result(), "^0 ")
}

// dial connects a client without netcat.
func (p *process) dial() *testClient {
	p.t.Helper()
	conn, err := net.DialTimeout("tcp", p.addr, timeout)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { conn.Close() })
	return &testClient{t: p.t, in: conn, out: conn}
}

// joins connects a client that stakes this many tokens.
func (p *process) joins(stake int) *testClient {
	p.t.Helper()
	c := p.dial()
	c.types(fmt.Sprintln(stake))
	c.wait(joined + bpmPrompt)
	return c
}

// react types first, and then again after each announcement. EOF at the end of one of them ends the input. It returns
// everything received until the connection ended.
func react(conn net.Conn, first, again string) (text string, err error) {
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(timeout))
	types := func(text string) {
		text, eof := strings.CutSuffix(text, "EOF")
		if io.WriteString(conn, text); eof {
			conn.(*net.TCPConn).CloseWrite()
		}
	}
	types(first)
	for in, line := bufio.NewReader(conn), ""; err == nil; text += line {
		if line, err = in.ReadString('\n'); strings.HasPrefix(line, "winning validator: ") {
			types(again)
		}
	}
	return text, err
}

// writeChain writes a chain file with a genesis block and this many more blocks.
func writeChain(dir string, blocks int) {
	var file bytes.Buffer
	const timestamp = "2026-01-01T00:00:00.000000000Z"
	const line = `{"Index":%d,"Timestamp":"%s","BPM":%d,"Hash":"%s","PrevHash":"%s","Validator":"%s"}` + "\n"
	prevHash, validator, bpm := "", "", 0
	for i := range blocks + 1 {
		hash := hashLines(fmt.Sprint(i), timestamp, fmt.Sprint(bpm), prevHash, validator)
		fmt.Fprintf(&file, line, i, timestamp, bpm, hash, prevHash, validator)
		prevHash, validator, bpm = hash, strings.Repeat("a", 64), 50
	}
	os.WriteFile(filepath.Join(dir, "chain.jsonl"), file.Bytes(), 0o644)
}

// hashLines returns the SHA-256 of lines, each followed by a newline, in hex.
func hashLines(lines ...string) string {
	return fmt.Sprintf("%x", sha256.Sum256([]byte(strings.Join(lines, "\n")+"\n")))
}
