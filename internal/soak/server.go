package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// epoch is the life of one server process.
type epoch struct {
	soak   *soak
	number int
	cmd    *exec.Cmd
	ready  chan struct{} // closed when it listens
	exited chan struct{} // closed when it is gone, and all it said is read
	fresh  usage         // before anybody connected
	torn   bool          // it was started on a file with a torn last line

	killed   atomic.Bool // it has been, or is about to be
	stopping atomic.Bool // it has been, or is about to be, asked to stop
	trap     atomic.Bool // whoever hears of a new winner first kills the server
	crashed  atomic.Bool // it has ended by itself
	goodbyes atomic.Bool // SIGQUIT was sent: what is on stderr is a goroutine dump

	terminals sync.WaitGroup // those connected to it, until they are at their end

	first, head int // the blocks that it forged: set when it is gone

	mu     sync.Mutex
	ended  []*terminal
	draws  map[int]draw
	stderr []string
	inUse  int // MiB, at the last garbage collection; -1: not known
}

// draw is what the console says of how a block was forged.
type draw struct {
	winner    string
	proposals int
	tokens    *big.Int
	stake     int64
}

// fate is how the server ended, if it has.
func (e *epoch) fate() string {
	switch {
	case e.killed.Load():
		return "killed"
	case e.stopping.Load():
		return "stopped"
	}
	return "running"
}

// stopped reports whether the server was asked to stop and not killed.
func (e *epoch) stopped() bool { return e.stopping.Load() && !e.killed.Load() }

// ending reports whether terminals must expect anything.
func (e *epoch) ending() bool { return e.killed.Load() || e.stopping.Load() }

// command is the server's program with the settings of the run.
func (s *soak) command(addr string, args ...string) *exec.Cmd {
	cmd := exec.Command(s.binary, args...)
	cmd.Dir = s.dir // no .env there
	cmd.Env = append(os.Environ(), "ADDR="+addr, "ROUND="+roundLength.String(), "BROADCAST="+broadcastEvery.String(),
		"BROADCAST_BLOCKS="+strconv.Itoa(broadcastBlocks), "CHAIN_FILE="+s.ledger.file, "MAX_CLIENTS="+strconv.Itoa(s.crowdSize),
		"GORACE=atexit_sleep_ms=50", // not 1 s, which would count as the server's
		"GOGC=25")                   // so that memory which is held shows in memory which is used
	return cmd
}

// startServer starts a server and waits until it listens. The memory of the last one is
// watched closely.
func (s *soak) startServer(torn, last bool) (*epoch, bool) {
	s.epochs++
	e := &epoch{soak: s, number: s.epochs, torn: torn, cmd: s.command(s.addr), first: s.ledger.head() + 1, draws: map[int]draw{}, inUse: -1,
		ready: make(chan struct{}), exited: make(chan struct{})}
	if last {
		e.cmd.Env = append(e.cmd.Env, "GODEBUG=gctrace=1") // tells how much memory is in use
	}
	stdout, err1 := e.cmd.StdoutPipe()
	stderr, err2 := e.cmd.StderrPipe()
	s.childMu.Lock()
	if s.childless {
		s.childMu.Unlock()
		return nil, false
	}
	err := errors.Join(err1, err2, e.cmd.Start())
	s.child = e
	s.childMu.Unlock()
	if err != nil {
		s.fail("cannot start the server: %v", err)
		return nil, false
	}
	var readers sync.WaitGroup
	readers.Go(func() { e.readConsole(stdout) })
	readers.Go(func() { e.readErrors(stderr) })
	go func() {
		readers.Wait()
		e.cmd.Wait()
		if !e.ending() {
			e.crashed.Store(true)
			s.fail("the server ended by itself: %v; its last words:\n%s", e.cmd.ProcessState, e.lastErrors())
		}
		close(e.exited)
	}()
	select {
	case <-e.ready:
	case <-e.exited:
		return nil, false
	case <-time.After(patience):
		s.fail("the server does not listen within %v", patience)
		return nil, false
	}
	e.fresh = e.usage()
	return e, true
}

// kill ends the server at once.
func (e *epoch) kill() {
	e.killed.Store(true)
	e.cmd.Process.Kill()
}

// stop asks the server to stop, which it must do within stopLimit.
func (e *epoch) stop(sig os.Signal) {
	e.stopping.Store(true)
	asked := time.Now()
	if err := e.cmd.Process.Signal(sig); err != nil {
		e.soak.fail("cannot send %v: %v", sig, err)
	}
	select {
	case <-e.exited:
		if code := e.cmd.ProcessState.ExitCode(); code != 0 {
			e.soak.fail("after %v the server ended with %v; its last words:\n%s", sig, e.cmd.ProcessState, e.lastErrors())
		}
		e.soak.slowestStop = max(e.soak.slowestStop, time.Since(asked))
		e.soak.checks.Add(1)
	case <-time.After(stopLimit):
		e.soak.fail("the server goes on %v after %v", stopLimit, sig)
		e.kill()
	}
}

var (
	drawLine = regexp.MustCompile(`^block (\d+) forged by ([0-9a-f]{64}): ticket (\d+) of (\d+) from (\d+) proposals?, stake (\d+) \((\d+\.\d)%\)$`)
	listLine = regexp.MustCompile(`^  ([0-9a-f]{64}) (\d+)$`) // in the list of validators

	// A server may say these on stderr; anything else is a failure.
	expectedErrors = regexp.MustCompile(`terminals? (was |were )?cut off|^gc \d+ @| ms clock, `)

	// How much memory is in use, from a line that GODEBUG=gctrace=1 shows.
	inUse = regexp.MustCompile(` \d+->\d+->(\d+) MB, `)
)

// readConsole notes the draws that the console shows, and checks its list of validators.
func (e *epoch) readConsole(r io.Reader) {
	for in := bufio.NewReader(r); ; {
		line, err := in.ReadString('\n')
		if err != nil {
			return // what is left was torn by a kill
		}
		line = strings.TrimSuffix(line, "\n")
		if strings.HasPrefix(line, "listening on ") {
			close(e.ready)
		}
		if m := listLine.FindStringSubmatch(line); m != nil {
			if err := e.soak.ledger.listed(m[1], m[2]); err != nil {
				e.soak.fail("the console lists %q: %v", line, err)
			}
		}
		if !strings.HasPrefix(line, "block ") {
			continue
		}
		m := drawLine.FindStringSubmatch(line)
		if m == nil {
			e.soak.fail("the console says %q", line)
			continue
		}
		index, _ := strconv.Atoi(m[1])
		ticket, _ := new(big.Int).SetString(m[3], 10)
		d := draw{winner: m[2], tokens: new(big.Int)}
		d.tokens.SetString(m[4], 10)
		d.proposals, _ = strconv.Atoi(m[5])
		d.stake, _ = strconv.ParseInt(m[6], 10, 64)
		share, _ := new(big.Rat).SetFrac(new(big.Int).Mul(big.NewInt(d.stake), big.NewInt(100)), d.tokens).Float64()
		e.mu.Lock()
		_, twice := e.draws[index]
		e.draws[index] = d
		e.mu.Unlock()
		if twice || ticket.Sign() <= 0 || ticket.Cmp(d.tokens) > 0 || m[7] != fmt.Sprintf("%.1f", share) {
			e.soak.fail("the console says %q, which cannot be (said before: %v)", line, twice)
		}
		e.soak.checks.Add(1)
	}
}

// readErrors reads what the server says on stderr: it must have no reason to say much.
func (e *epoch) readErrors(r io.Reader) {
	var once sync.Once
	complain := func() {
		once.Do(func() { e.soak.fail("the server says on stderr:\n%s", e.lastErrors()) })
	}
	warned, unexpected := false, false
	for in := bufio.NewReader(r); ; {
		line, err := in.ReadString('\n')
		if line != "" {
			e.mu.Lock()
			if m := inUse.FindStringSubmatch(line); m != nil {
				e.inUse, _ = strconv.Atoi(m[1])
			} else {
				e.stderr = append(e.stderr, strings.TrimSuffix(line, "\n"))
			}
			e.mu.Unlock()
			switch {
			case e.goodbyes.Load(), expectedErrors.MatchString(line):
			case e.torn && !warned:
				warned = true
			case !unexpected:
				unexpected = true
				time.AfterFunc(time.Second, complain) // when all of it is said
			}
		}
		if err == nil {
			continue
		}
		if unexpected {
			complain()
		}
		if e.torn && !warned {
			e.soak.fail("the server did not warn of the torn last line")
		}
		return
	}
}

// lastErrors is the end of what the server said on stderr.
func (e *epoch) lastErrors() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return strings.Join(e.stderr[max(0, len(e.stderr)-60):], "\n")
}

// usage is what a process holds; all 0 where there is no /proc.
type usage struct {
	files, threads int
	memory         int // KiB, resident: with that of the race detector, which is most of it
	inUse          int // MiB, of the server's own, at the last garbage collection; -1: not known
}

func (u usage) String() string {
	inUse := ""
	if u.inUse >= 0 {
		inUse = fmt.Sprintf(" (%d in use)", u.inUse)
	}
	return fmt.Sprintf("%d MiB%s, %d files, %d threads", u.memory>>10, inUse, u.files, u.threads)
}

// usage measures the server.
func (e *epoch) usage() (u usage) {
	proc := fmt.Sprintf("/proc/%d", e.cmd.Process.Pid)
	files, err := os.ReadDir(filepath.Join(proc, "fd"))
	if err != nil {
		if runtime.GOOS == "linux" && !e.ending() {
			e.soak.fail("cannot measure the server: %v", err)
		}
		return usage{}
	}
	u.files = len(files)
	e.mu.Lock()
	u.inUse = e.inUse
	e.mu.Unlock()
	status, _ := os.ReadFile(filepath.Join(proc, "status"))
	for line := range strings.Lines(string(status)) {
		fmt.Sscanf(line, "VmRSS: %d kB", &u.memory)
		fmt.Sscanf(line, "Threads: %d", &u.threads)
	}
	return u
}

// verify runs the server's own check of the chain file and compares its answer.
func (s *soak) verify() {
	before, _ := s.ledger.length(0, "")
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := s.command(s.addr, "verify", s.ledger.file)
	out, err := runBounded(ctx, cmd)
	m := regexp.MustCompile(`^ok: (\d+) blocks, head ([0-9a-f]{64})\n$`).FindStringSubmatch(out)
	if err != nil || m == nil {
		s.fail("verify says %q, %v", out, err)
		return
	}
	n, _ := strconv.Atoi(m[1])
	after, same := s.ledger.length(n, m[2])
	if n < before || n > after || !same {
		s.fail("verify says %q of a file with %d to %d blocks", out, before, after)
	}
	s.verified++
	s.checks.Add(1)
}

// secondServer tries to start another server on the same file, which must not be possible.
func (s *soak) secondServer() {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := s.command("127.0.0.1:0")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	_, err := runBounded(ctx, cmd)
	if code := cmd.ProcessState.ExitCode(); err == nil || code != 1 || strings.Count(stderr.String(), "\n") != 1 {
		s.fail("a second server on the same file: status %d (want 1), %v, stderr %q (want a line)", code, err, stderr.String())
	}
	s.checks.Add(1)
}

// runBounded runs cmd until ctx is done and returns its standard output.
func runBounded(ctx context.Context, cmd *exec.Cmd) (string, error) {
	var out strings.Builder
	cmd.Stdout = &out
	if err := cmd.Start(); err != nil {
		return "", err
	}
	defer context.AfterFunc(ctx, func() { cmd.Process.Kill() })()
	err := cmd.Wait()
	return out.String(), err
}

// countGoroutines ends the server with SIGQUIT, on which it shows all its goroutines, and
// checks that few of those that run its own code are left.
func (e *epoch) countGoroutines() {
	e.goodbyes.Store(true)
	e.killed.Store(true)
	if err := e.cmd.Process.Signal(syscall.SIGQUIT); err != nil {
		e.cmd.Process.Kill() // Windows
		<-e.exited
		return
	}
	select {
	case <-e.exited:
	case <-time.After(patience):
		e.soak.fail("the server goes on after SIGQUIT")
		e.kill()
		return
	}
	dump := strings.Join(e.stderr, "\n")
	for stack := range strings.SplitSeq(dump, "\n\n") {
		if strings.HasPrefix(stack, "goroutine ") && (strings.Contains(stack, "\nmain.") || strings.Contains(stack, "\nproofofstake/")) {
			e.soak.goroutines++
		}
	}
	limit := maxGoroutines + runtime.NumCPU()
	switch {
	case e.soak.goroutines == 0:
		e.soak.fail("no goroutines in what the server says on SIGQUIT: %q", dump)
	case e.soak.goroutines > limit, strings.Contains(dump, ".handleConn"):
		e.soak.fail("%d goroutines are left with nobody connected, want %d or less and no handleConn:\n%.5000s",
			e.soak.goroutines, limit, dump)
	}
	e.soak.checks.Add(1)
}

// freePort finds an address to listen on. It is below the ports that systems
// give to outgoing connections, or one of the crowd could get it, and even connect to
// itself, while the server is down.
func freePort(n int) (string, error) {
	var last error
	for i := range 100 {
		addr := fmt.Sprintf("127.0.0.1:%d", 20000+(n+i*37)%10000)
		ln, err := net.Listen("tcp", addr)
		if err == nil {
			return addr, ln.Close()
		}
		last = err
	}
	return "", last
}
