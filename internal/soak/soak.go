// Command soak drives a real server, built with the race detector and run as a process
// of its own, with a crowd of terminals that join, stake, propose, misbehave, stall and
// vanish, while it is killed, stopped and started again on the same chain file. It holds
// every byte that any of them reads against the contract (README.md), and everything
// that all of them heard against the chain file.
//
//	go run ./internal/soak -for 60s [-seed N] [-crowd N]
//
// It ends with "soak: ok" and status 0, or with what went wrong, and where all of it is
// kept, and status 1. All choices come from the seed, but when what happens is up to the
// machine: a seed repeats the kind of run, not the run.
//
// It cannot see whether blocks survive a loss of power (a killed process loses nothing that it has
// written), or whether the draw is fair: tests of the packages do.
package main

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// What the server is set to: all that happens in a day, in a minute.
const (
	roundLength     = 50 * time.Millisecond
	broadcastEvery  = 300 * time.Millisecond
	broadcastBlocks = 20
)

// What is expected of it.
const (
	patience       = 10 * time.Second // for whatever a server must do, on a busy machine
	stopLimit      = 5 * time.Second  // from SIGTERM to the end
	serverPatience = 10 * time.Second // after which it may cut off who does not read
	maxTries       = 3                // at a stake
	maxGoroutines  = 6                // with nobody connected, and one for each processor
	maxThreads     = 64
	memoryMargin   = 48 << 10 // KiB, on top of half as much again
	inUseMargin    = 4        // MiB, likewise
	overtime       = 20 * time.Second
)

// soak is one run.
type soak struct {
	seed      uint64
	crowdSize int
	dir       string // of the server's program and the chain file
	binary    string
	addr      string
	ledger    *ledger
	crowd     *crowd
	r         *rand.Rand // of the goroutine that plays

	childMu   sync.Mutex
	child     *epoch // the newest server
	childless bool   // there must be no other

	mu       sync.Mutex
	epoch    *epoch        // where to connect; nil: nowhere now
	opened   chan struct{} // closed when there is one again
	failures int
	failed   chan struct{} // closed after the first

	settling sync.WaitGroup

	// For the summary. The first are counted by many, the others by the main goroutine,
	// or the one that settles.
	connections, accepted, announcements, broadcasts, slashes, full, checks atomic.Int64

	epochs, kills, stops, tornFiles, verified, heard, goroutines int
	slowestStop                                                  time.Duration
}

func main() {
	length := flag.Duration("for", time.Minute, "how long to go on, 10s or more")
	seed := flag.Uint64("seed", 0, "where all choices come from; 0: the clock")
	size := flag.Int("crowd", 400, "terminals at once")
	flag.Parse()
	if flag.NArg() > 0 || *length < 10*time.Second || *size < 1 {
		fmt.Fprintln(os.Stderr, "soak: want -for 10s or more, -crowd 1 or more, and nothing else")
		os.Exit(2)
	}
	if *seed == 0 {
		*seed = uint64(time.Now().UnixNano()) % 1e9
	}
	os.Exit(run(*length, *seed, *size))
}

// run does it all and returns the exit status.
func run(length time.Duration, seed uint64, size int) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	dir, err := os.MkdirTemp("", "soak-")
	if err != nil {
		fmt.Fprintln(os.Stderr, "soak:", err)
		return 1
	}
	s := &soak{seed: seed, crowdSize: size, dir: dir, binary: filepath.Join(dir, "proofofstake"), r: rand.New(rand.NewPCG(seed, 0)),
		opened: make(chan struct{}), failed: make(chan struct{})}
	if runtime.GOOS == "windows" {
		s.binary += ".exe"
	}
	s.ledger = newLedger(s, filepath.Join(dir, "chain.jsonl"), broadcastBlocks)
	s.crowd = &crowd{soak: s}
	fmt.Printf("soak: seed %d, for %v, %d terminals at once\n", seed, length, size)

	build := exec.CommandContext(ctx, "go", "build", "-race", "-o", s.binary, "proofofstake")
	build.Stdout, build.Stderr = os.Stderr, os.Stderr
	if err := build.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "soak: cannot build the server:", err)
		os.RemoveAll(dir)
		return 1
	}
	if s.addr, err = freePort(s.r.IntN(10000)); err != nil {
		fmt.Fprintln(os.Stderr, "soak: no free port:", err)
		os.RemoveAll(dir)
		return 1
	}

	// Nothing may take longer than that, whatever goes wrong.
	defer time.AfterFunc(length+overtime, func() {
		s.fail("not done %v after its time; what this program is at:", overtime)
		pprof.Lookup("goroutine").WriteTo(os.Stderr, 1)
		s.killChild()
		os.Exit(1)
	}).Stop()

	began := time.Now()
	done := make(chan struct{})
	go func() { defer close(done); s.play(began, length) }()
	select {
	case <-done:
	case <-s.failed:
		select { // others may have something to say about it
		case <-done:
		case <-time.After(1500 * time.Millisecond):
		}
	case <-ctx.Done():
		s.killChild()
		os.RemoveAll(dir)
		fmt.Println("soak: interrupted")
		return 1
	}
	s.killChild()
	s.mu.Lock()
	failures := s.failures
	s.mu.Unlock()
	if failures > 0 {
		fmt.Fprintf(os.Stderr, "soak: %d failures, seed %d; the chain file and the server are in %s\n", failures, seed, dir)
		return 1
	}
	s.summarize(time.Since(began))
	os.RemoveAll(dir)
	fmt.Println("soak: ok")
	return 0
}

// fail reports a failure, if there are not too many already. The first one ends the run.
func (s *soak) fail(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failures++; s.failures <= 10 {
		fmt.Fprintf(os.Stderr, "soak: FAILED (seed %d): %s\n", s.seed, fmt.Sprintf(format, args...))
	}
	if s.failures == 1 {
		close(s.failed)
	}
}

// over reports whether something has failed.
func (s *soak) over() bool {
	select {
	case <-s.failed:
		return true
	default:
		return false
	}
}

// killChild ends the server, if there is one, and sees to it that there will be no other.
func (s *soak) killChild() {
	s.childMu.Lock()
	defer s.childMu.Unlock()
	s.childless = true
	if s.child != nil {
		s.child.kill()
	}
}

// play is the run: the first part with kills and restarts, the last with one server whose
// memory is watched. Whatever fails ends it.
func (s *soak) play(began time.Time, length time.Duration) {
	until := func(share float64) time.Duration {
		return time.Until(began.Add(time.Duration(share * float64(length))))
	}
	pace := min(max(length/20, time.Second), 5*time.Second)
	torn := false
	for quiet := false; until(0.55) > 0; {
		e, ok := s.startServer(torn, false)
		if !ok {
			return
		}
		s.open(e)
		if s.crowd.cut == nil {
			s.crowd.call(s.crowdSize)
		}
		s.wait(min(pace+upTo(s.r, pace), max(until(0.55), time.Second)))
		switch {
		case s.over():
			return
		case !quiet && until(0.2) < 0:
			quiet = true
			s.quiet(e, "after the first fifth")
			s.crowd.call(s.crowdSize)
			s.wait(time.Second)
		case s.r.IntN(3) == 0:
			s.secondServer()
		}
		if torn, ok = s.end(e); !ok {
			return
		}
	}

	e, ok := s.startServer(torn, true)
	if !ok {
		return
	}
	s.open(e)
	s.wait(until(0.70))
	if s.over() {
		return
	}
	before := s.quiet(e, "after two thirds")
	s.crowd.call(s.crowdSize)
	s.wait(until(1))
	if s.over() {
		return
	}
	after := s.quiet(e, "at the end")
	s.fillHouse(e)
	after.inUse = e.usage().inUse
	if after.inUse < 0 {
		s.fail("nothing is known of the server's garbage collections")
	}
	if after.memory > before.memory+before.memory/2+memoryMargin || after.inUse > before.inUse+before.inUse/2+inUseMargin {
		s.fail("the server's memory grew from %v to %v, with nobody connected", before, after)
	}
	e.countGoroutines()
	s.close(e)
	s.verify()
	s.settling.Wait()
}

// wait waits for d, and runs verify now and then, while the server writes.
func (s *soak) wait(d time.Duration) {
	deadline := time.Now().Add(d)
	for left := d; left > 0 && !s.over(); left = time.Until(deadline) {
		select {
		case <-time.After(min(left, time.Second+upTo(s.r, 3*time.Second))):
		case <-s.failed:
			return
		}
		if time.Until(deadline) > 0 {
			s.verify()
		}
	}
}

// end ends the server e in one of many ways, and checks the file that it leaves. It
// returns whether that has a torn last line now, and whether to go on.
func (s *soak) end(e *epoch) (torn, ok bool) {
	way := s.r.IntN(6)
	if e.number <= 3 {
		way = []int{5, 0, 4}[e.number-1] // some of each at least
	}
	switch {
	case runtime.GOOS == "windows", way > 1:
		s.kills++
		if way > 3 { // as soon as somebody hears of a block
			e.trap.Store(true)
			select {
			case <-e.exited:
			case <-time.After(time.Second):
			}
		}
		e.kill()
		select {
		case <-e.exited:
		case <-time.After(patience):
			s.fail("the server goes on after SIGKILL")
			return false, false
		}
	case way == 1:
		s.stops++
		e.stop(os.Interrupt)
	default:
		s.stops++
		e.stop(syscall.SIGTERM)
	}
	s.close(e)
	left := s.ledger.reread()
	if len(left) > 0 && e.stopped() {
		s.fail("a server that was not killed leaves a torn line %q", left)
	}
	torn = len(left) > 0
	if !torn && (e.number == 1 || s.r.IntN(3) == 0) {
		s.tear()
		torn = true
	}
	s.verify()
	return torn, !s.over()
}

// tear adds to the chain file what a crash may leave: the beginning of a line.
func (s *soak) tear() {
	line := s.ledger.lines[len(s.ledger.lines)-1]
	f, err := os.OpenFile(s.ledger.file, os.O_WRONLY|os.O_APPEND, 0)
	if err == nil {
		_, err = f.Write(line[:1+s.r.IntN(len(line))]) // the last of these lacks the newline only
		f.Close()
	}
	if err != nil {
		s.fail("cannot tear the chain file: %v", err)
	}
	s.tornFiles++
}

// open lets the crowd connect to e.
func (s *soak) open(e *epoch) {
	s.mu.Lock()
	s.epoch = e
	close(s.opened)
	s.mu.Unlock()
}

// close notes that the server e is gone, and has it settled when the last
// of its terminals is at its end.
func (s *soak) close(e *epoch) {
	s.mu.Lock()
	s.epoch, s.opened = nil, make(chan struct{})
	s.mu.Unlock()
	s.ledger.reread()
	e.head = s.ledger.head()
	s.settling.Go(func() {
		e.terminals.Wait()
		s.ledger.settle(e)
	})
}

// join returns the server to connect to, when there is one; nil if cut is closed first. The
// caller must call terminals.Done.
func (s *soak) join(cut <-chan struct{}) *epoch {
	for {
		s.mu.Lock()
		e, opened := s.epoch, s.opened
		if e != nil {
			e.terminals.Add(1)
		}
		s.mu.Unlock()
		if e != nil {
			select {
			case <-cut:
				e.terminals.Done()
				return nil
			default:
				return e
			}
		}
		select {
		case <-opened:
		case <-cut:
			return nil
		}
	}
}

// quiet has the crowd leave and checks that the server gives back all that it cost.
func (s *soak) quiet(e *epoch, when string) usage {
	s.crowd.dismiss()
	u := s.settled(e)
	fmt.Printf("soak: %s, nobody connected: the server has %v; fresh it had %v\n", when, u, e.fresh)
	return u
}

// settled checks what the server has, when everybody has left, and returns it.
func (s *soak) settled(e *epoch) usage {
	u := e.usage()
	for limit := time.Now().Add(patience / 2); u.files > e.fresh.files && time.Now().Before(limit); u = e.usage() {
		time.Sleep(50 * time.Millisecond) // there is nothing to wait for but the number
	}
	switch {
	case u.files > e.fresh.files:
		s.fail("with nobody connected the server has %d open files, fresh it had %d", u.files, e.fresh.files)
	case u.threads > maxThreads:
		s.fail("with nobody connected the server has %d threads", u.threads)
	}
	s.checks.Add(1)
	return u
}

// fillHouse checks that there is room for exactly as many as the server was set to, also
// after all who came and went. Nobody must be connected.
func (s *soak) fillHouse(e *epoch) {
	var guests []*terminal
	come := func() *terminal {
		t := s.connect(e, fmt.Sprintf("guest %d", len(guests)))
		if t == nil {
			return nil
		}
		e.terminals.Add(1)
		guests = append(guests, t)
		t.await("a word", func() bool { return t.greeted })
		return t
	}
	in := 0
	for limit := time.Now().Add(patience / 2); in < s.crowdSize; {
		if t := come(); t != nil && !t.isOver() {
			in++
		} else if time.Now().After(limit) { // who has just left may still count for a moment
			s.fail("the server is full with %d of %d", in, s.crowdSize)
			break
		}
	}
	if t := come(); t != nil && !t.isOver() {
		s.fail("the server is not full with %d of %d", in+1, s.crowdSize)
	}
	for _, t := range guests {
		t.hangUp(true)
		<-t.finished
		e.terminals.Done()
	}
	s.checks.Add(1)
	s.settled(e)
}

func (s *soak) summarize(took time.Duration) {
	fmt.Println(strings.Join([]string{
		fmt.Sprintf("soak: seed %d, %v", s.seed, took.Round(time.Second)),
		fmt.Sprintf("%d connections (%d found the server full)", s.connections.Load(), s.full.Load()),
		fmt.Sprintf("%d proposals accepted, %d slashes", s.accepted.Load(), s.slashes.Load()),
		fmt.Sprintf("%d blocks in the chain, %d of their winners heard %d times, %d broadcasts", s.ledger.head()+1, s.heard, s.announcements.Load(), s.broadcasts.Load()),
		fmt.Sprintf("%d servers: %d killed, %d stopped (%v at most), 1 counted: %d goroutines", s.epochs, s.kills, s.stops, s.slowestStop.Round(time.Millisecond), s.goroutines),
		fmt.Sprintf("%d chain files torn, %d verified", s.tornFiles, s.verified),
		fmt.Sprintf("%d checks", s.checks.Load()),
	}, "\n  "))
}
