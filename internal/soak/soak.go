// Command soak drives a real server, built with the race detector and run as a process of its own, with a crowd of
// terminals that stake, propose, misbehave, stall and vanish, while it is killed, stopped and started again on the same
// files. Every terminal's text is kept. When a server has ended, plain functions judge the finished transcripts against
// the contract, the chain file and the draws file; they share no code with the server.
//
//	go run ./internal/soak -for 60s [-seed N]
//
// All choices come from the seed, but when what happens is up to the machine: a seed repeats the kind of run, not the run.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"math"
	"math/big"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const patience, stopLimit = 10 * time.Second, 5 * time.Second // for whatever a server must do; from SIGTERM to its end

// A soak is one run: one server after the other, on the same files.
type soak struct {
	ctx                               context.Context
	seed                              uint64
	r                                 *rand.Rand
	dir, binary, chainFile, drawsFile string
	chain, draws                      string // the whole lines of the files, when no server runs
	mu                                sync.Mutex
	faults                            []string // guarded by mu
	count                             map[string]int
	tenths                            [10]float64 // how many tickets were drawn from each tenth of all
}

// A server is a life while it lasts.
type server struct {
	life
	soak                    *soak
	cmd                     *exec.Cmd
	addr                    string
	began                   time.Time
	ending, exited, leaving atomic.Bool    // it is to end; it has; the crowd is to leave
	crowd                   sync.WaitGroup // members, and terminals that read
	pieces                  []string       // of the draws file, moved away
	fresh                   int            // files that it had open before anybody came
}

func main() {
	length := flag.Duration("for", time.Minute, "how long to go on, 10s or more")
	seed := flag.Uint64("seed", 0, "where all choices come from; 0: the clock")
	flag.Parse()
	if *seed == 0 {
		*seed = uint64(time.Now().UnixNano()) % 1e9
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	ctx, cancel := context.WithTimeout(ctx, *length+2*time.Minute) // nothing may take longer, whatever goes wrong
	s := &soak{ctx: ctx, seed: *seed, r: rand.New(rand.NewPCG(*seed, 0)), count: map[string]int{}}
	if err := s.run(*length); err != nil {
		s.fail("%v", err)
	}
	cancel()
	stop()
	if len(s.faults) > 0 {
		fmt.Printf("soak: FAILED, seed %d: %d faults; the files and the servers' words are in %s\n", *seed, len(s.faults), s.dir)
		os.Exit(1)
	}
	os.RemoveAll(s.dir)
	fmt.Print("soak ok: ")
	for _, kind := range slices.Sorted(maps.Keys(s.count)) {
		fmt.Printf("%s %d, ", kind, s.count[kind])
	}
	fmt.Printf("seed %d\n", *seed)
}

// fail notes a fault, and shows it if it is one of the first.
func (s *soak) fail(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.faults = append(s.faults, fmt.Sprintf(format, args...)); len(s.faults) < 5 {
		fmt.Printf("soak: seed %d: %s\n", s.seed, s.faults[len(s.faults)-1])
	}
}

// until waits until something is so, at most for d, and reports whether it is. Servers and people are real here, and so is time.
func until(d time.Duration, so func() bool) bool {
	for limit := time.Now().Add(d); !so(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(limit) {
			return false
		}
	}
	return true
}

// read is what a file holds; nothing, if it is not there. whole is its whole lines.
func read(name string) string {
	text, _ := os.ReadFile(name)
	return string(text)
}

func whole(text string) string { return text[:strings.LastIndex(text, "\n")+1] }

// run is the whole run. Its error is what kept it from going on, or what is wrong with all of it.
func (s *soak) run(length time.Duration) (err error) {
	goroutines, torn, last := runtime.NumGoroutine(), false, false
	if s.dir, err = os.MkdirTemp("", "soak-"); err != nil {
		return err
	}
	s.binary, s.chainFile, s.drawsFile = filepath.Join(s.dir, "server.exe"), filepath.Join(s.dir, "chain.jsonl"), filepath.Join(s.dir, "draws.jsonl")
	if out, err := exec.CommandContext(s.ctx, "go", "build", "-race", "-o", s.binary, "proofofstake").CombinedOutput(); err != nil {
		return fmt.Errorf("building the server: %w\n%s", err, out)
	}
	for deadline, number := time.Now().Add(length), 1; len(s.faults) == 0 && !last; number++ {
		l, err := s.start(number, torn)
		if err != nil {
			return err
		}
		l.gather()
		left := max(time.Until(deadline), 8*time.Second)
		if last = left < 15*time.Second; !last {
			left = 2*time.Second + time.Duration(s.r.Int64N(int64(8*time.Second)))
		}
		for end := time.Now().Add(left); time.Now().Before(end) && !l.exited.Load(); l.meddle() {
			time.Sleep(min(time.Until(end), time.Second+time.Duration(s.r.Int64N(2e9))))
		}
		l.finish(last)
		torn = s.tear()
	}
	chi, all := 0.0, 0.0 // 10 * sum(n^2) / all - all is the sum of the squared differences, each over what was expected
	for _, n := range s.tenths {
		chi, all = chi+10*n*n, all+n
	}
	if s.ctx.Err() != nil || runtime.NumGoroutine() > goroutines+3 || chi/all-all > 45 || s.count["full"] == 0 { // 45: once in a million runs
		err = fmt.Errorf("interrupted or late: %v; %d goroutines, %d before; drawn from each tenth of the tickets: %v; %d found the server full",
			s.ctx.Err(), runtime.NumGoroutine(), goroutines, s.tenths, s.count["full"])
	}
	return err
}

// command is the server's program with the settings of the run.
func (s *soak) command(args ...string) *exec.Cmd {
	cmd := exec.CommandContext(s.ctx, s.binary, args...)
	cmd.Dir = s.dir // no .env there
	cmd.Env = append(os.Environ(), "ADDR=127.0.0.1:0", "ROUND="+roundLength.String(), "BROADCAST="+broadcastEvery.String(),
		"BROADCAST_BLOCKS="+strconv.Itoa(broadcastBlocks), "CHAIN_FILE="+s.chainFile, "DRAWS_FILE="+s.drawsFile,
		"MAX_CLIENTS="+strconv.Itoa(maxClients), "GORACE=atexit_sleep_ms=50") // not 1 s, which would count as the server's
	return cmd
}

// start starts a server and waits until it listens.
func (s *soak) start(number int, torn bool) (*server, error) {
	l := &server{soak: s, cmd: s.command(), began: time.Now()}
	l.number, l.first, l.torn, l.drawsFrom = number, max(1, strings.Count(s.chain, "\n")), torn, len(s.draws)
	stdout, err1 := os.Create(l.file("stdout"))
	stderr, err2 := os.Create(l.file("stderr"))
	l.cmd.Stdout, l.cmd.Stderr = stdout, stderr
	if err := errors.Join(err1, err2, l.cmd.Start(), stdout.Close(), stderr.Close()); err != nil {
		return nil, err
	}
	l.crowd.Go(func() {
		l.cmd.Wait()
		l.exited.Store(true)
	})
	until(patience, func() bool {
		_, l.addr, _ = strings.Cut(strings.TrimSpace(read(l.file("stdout"))), "\nlistening on ")
		return l.addr != "" || l.exited.Load()
	})
	if l.fresh = l.files(); l.addr == "" || l.exited.Load() {
		l.end(os.Kill)
		return nil, fmt.Errorf("server %d does not listen: %s", number, read(l.file("stderr")))
	}
	return l, nil
}

func (l *server) now() time.Duration { return time.Since(l.began) }

// file is where something of this server is kept.
func (l *server) file(what string) string {
	return filepath.Join(l.soak.dir, fmt.Sprintf("%d-%s", l.number, what))
}

// files is how many files the server has open; 0 where that is not known.
func (l *server) files() int {
	files, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", l.cmd.Process.Pid))
	return len(files)
}

// end has the server end, if nothing did before.
func (l *server) end(by os.Signal) {
	if l.asked == 0 {
		l.asked, l.killed = l.now(), by != os.Interrupt && by != syscall.SIGTERM
		l.ending.Store(true)
		l.cmd.Process.Signal(by)
	}
}

// meddle looks into what a running server does, or moves a file of it.
func (l *server) meddle() {
	s, piece := l.soak, l.file(fmt.Sprintf("draws-%d", len(l.pieces)))
	if s.r.IntN(4) > 0 {
		s.verify(false)
	} else if os.Link(s.drawsFile, piece) == nil && os.Remove(s.drawsFile) == nil {
		l.pieces, l.moved = append(l.pieces, piece), true
	}
}

// verify runs the server's own check of the files, and compares what it counts.
func (s *soak) verify(down bool) {
	var blocks, draws, without int
	var head string
	out, err := s.command("verify").CombinedOutput()
	n, _ := fmt.Sscanf(string(out), "ok: %d blocks, head %64s\nok: %d draws; %d blocks have no record", &blocks, &head, &draws, &without)
	known := strings.Count(s.chain, "\n")
	if s.count["verified"]++; err != nil || n < 3 || blocks < known || down && blocks > known || draws+without != blocks-1 {
		s.fail("verify says %q, %v, of a chain that had %d blocks", out, err, known)
	}
}

// forgotten reports whether the server has let go of everybody.
func (l *server) forgotten() bool {
	console := read(l.file("stdout"))
	return l.files() <= l.fresh && strings.HasPrefix(console[max(0, strings.LastIndex(console, "validators: ")):], "validators: 0 with 0 tokens")
}

// finish ends a server, one way or another, and has it judged. The last one must have let go of everybody, and shows its goroutines.
func (l *server) finish(last bool) {
	s, limit := l.soak, patience
	if l.exited.Load() {
		s.fail("server %d ended by itself: %s", l.number, read(l.file("stderr")))
	}
	switch way := s.r.IntN(5); {
	case last:
		if l.leaving.Store(true); !until(3*patience, l.forgotten) {
			s.fail("with nobody connected the server has %d open files, fresh it had %d, or it still lists validators", l.files(), l.fresh)
		}
		l.end(syscall.SIGQUIT)
	case way < 2 || l.number == 1:
		l.end([]os.Signal{os.Interrupt, syscall.SIGTERM}[way%2])
		limit = stopLimit
	}
	l.end(os.Kill)
	if !until(limit, l.exited.Load) {
		s.fail("server %d goes on after %v", l.number, limit)
		l.cmd.Process.Kill()
	}
	l.crowd.Wait()
	if s.count["servers"]++; !l.killed {
		s.count["servers stopped"]++
		if l.cmd.ProcessState.ExitCode() != 0 {
			s.fail("server %d ended with %v", l.number, l.cmd.ProcessState)
		}
	}
	var dump string
	if l.errs, dump, _ = strings.Cut(read(l.file("stderr")), "SIGQUIT: quit"); strings.Contains(dump, "handleConn") {
		s.fail("with nobody connected there are still handlers:\n%s", dump)
	}
	l.console, l.chain = read(l.file("stdout")), read(s.chainFile)
	for _, name := range append(l.pieces, s.drawsFile) {
		l.draws += read(name)
	}
	if !strings.HasPrefix(l.chain, s.chain) || !strings.HasPrefix(l.draws, s.draws) {
		s.fail("after server %d the files no longer begin with what they held before", l.number)
		return
	}
	l.draws = l.draws[len(s.draws):]
	s.chain, s.draws = whole(l.chain), whole(read(s.drawsFile))
	l.judge()
	for _, fault := range l.faults {
		s.fail("%s", fault)
	}
	for kind, n := range l.count {
		s.count[kind] += n
	}
	for _, d := range l.records {
		if part, _ := new(big.Rat).SetFrac(d.Ticket, d.Total).Float64(); d.Total.BitLen() > 9 { // few tickets are not even
			s.tenths[min(9, int(10*part))]++
		}
	}
	s.verify(true)
}

// tear does to the files what may happen to them while no server runs. It reports whether the chain file has a torn line.
func (s *soak) tear() (torn bool) {
	last := s.chain[strings.LastIndex(strings.TrimSuffix(s.chain, "\n"), "\n")+1:]
	part := last[:1+s.r.IntN(len(last)-1)]
	var err error
	switch way := s.r.IntN(6); {
	case len(read(s.chainFile)) > len(s.chain): // a kill has done it
		torn = true
	case way == 0:
		torn, err = true, os.WriteFile(s.chainFile, []byte(s.chain+part), 0o600)
	case way == 1: // an editor has taken the last newline
		torn, err = true, os.WriteFile(s.chainFile, []byte(strings.TrimSuffix(s.chain, "\n")), 0o600)
	case way == 2:
		err = os.WriteFile(s.drawsFile, []byte(s.draws+part), 0o600)
	case way == 3:
		s.draws, err = "", os.RemoveAll(s.drawsFile)
	}
	if err != nil {
		s.fail("cannot tear a file: %v", err)
	}
	return torn
}

// gather has the crowd come, some more than there is room for, a third of them from one address.
func (l *server) gather() {
	for i := range maxClients + 20 {
		r := rand.New(rand.NewPCG(l.soak.seed, uint64(l.number)<<32|uint64(i)))
		l.crowd.Go(func() {
			for n := 0; !l.leaving.Load() && !l.ending.Load(); n++ {
				part := pick(r, parts...)
				if i < 3 && l.number%2 == 1 {
					part = "1.R" // in a hurry
				} else {
					time.Sleep(time.Duration(r.IntN(300)) * time.Millisecond) // they do not all come at once
				}
				if t := l.dial(fmt.Sprintf("member %d.%d (%s)", i, n, part), i%3 == 0, r); t != nil {
					t.play(part)
				}
			}
		})
	}
}

// A terminal plays a part at one connection and keeps what happens there.
type terminal struct {
	*transcript // what was heard is the listener's, under mu; the rest is the player's
	server      *server
	conn        *net.TCPConn
	r           *rand.Rand
	mu          sync.Mutex
	rest, lull  atomic.Int64 // it does not read before that time, and so often
	bpm         int
}

// dial opens a terminal, from one address of this machine or another; nil if that fails.
func (l *server) dial(name string, other bool, r *rand.Rand) *terminal {
	from := net.TCPAddr{}
	if other && runtime.GOOS == "linux" {
		from.IP = net.IPv4(127, 0, 0, 2)
	}
	t := &terminal{transcript: &transcript{name: name, dialed: l.now()}, server: l, r: r}
	conn, err := (&net.Dialer{LocalAddr: &from}).Dial("tcp", l.addr)
	if err != nil {
		if !l.ending.Load() && !errors.Is(err, syscall.EADDRNOTAVAIL) { // that is: too many were closed lately
			l.soak.fail("%s cannot connect: %v", name, err)
		}
		return nil
	}
	t.conn = conn.(*net.TCPConn)
	l.soak.mu.Lock()
	l.terminals = append(l.terminals, t.transcript)
	t.bpm = 200 * len(l.terminals) // nobody types the same BPM as another, or twice
	l.soak.mu.Unlock()
	l.crowd.Go(t.listen)
	return t
}

// note adds to the log of the transcript.
func (t *terminal) note(what, text string) (at time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	at = t.server.now()
	fmt.Fprintf(&t.log, "%8.3f @%d %s %q\n", at.Seconds(), len(t.heard), what, text)
	return at
}

// look returns what was heard so far, and whether the conversation is over.
func (t *terminal) look() (heard string, over bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.heard, t.end != "" || t.hungUp > 0
}

// listen keeps what is heard until the end.
func (t *terminal) listen() {
	for buf, err := make([]byte, 8<<10), error(nil); err == nil; {
		until(time.Minute, func() bool { return int64(t.server.now()) >= t.rest.Load() || t.server.ending.Load() })
		var n int
		n, err = t.conn.Read(buf)
		text := string(buf[:n])
		part := moment{at: t.note("heard", text), end: len(t.heard) + n}
		if strings.Contains(text, winner) {
			part.kept, part.drew = len(read(t.server.soak.chainFile)), len(read(t.server.soak.drawsFile))
		}
		if t.lull.Load() > 0 {
			t.rest.Store(max(t.rest.Load(), int64(part.at)+t.lull.Load()))
		}
		t.mu.Lock()
		t.heard, t.came = t.heard+text, append(t.came, part)
		if err != nil {
			t.end, t.ended = err.Error(), part.at
		}
		t.mu.Unlock()
	}
	t.note("the end", t.end)
}

// hangUp closes the connection, politely or with a reset.
func (t *terminal) hangUp(reset bool) {
	if _, over := t.look(); !over {
		t.hungUp = t.note("hung up, with a reset:", strconv.FormatBool(reset))
	}
	if reset {
		t.conn.SetLinger(0)
	}
	t.conn.Close()
	t.rest.Store(0)
}

// parts are what happens at terminals, one letter for each thing that somebody does: texts has what letters type, play has
// the others. Some play the first, which is what a person does.
var parts = append(slices.Repeat([]string{"s.?0b?b?e?w.?W~b?b.?W~?b?w.W?b.L"}, 5),
	"sbebbwbbb?B?b.L", "sb?bbL", "s"+strings.Repeat("b", 150)+".L", // pasted
	"sb?b?bc$", "sb?b?bfc$", // piped, the second without the last newline
	"?x.e?x?w.?x?x.s.bL", "w.ew.?qsw.beww.?W?q.L", "g$", "?s?bN.L", "Pp.l$", "?s.__i_L", "L", "?.s?~b?b?B?c~R",
	"?msb.bbbbz.L", "msbZ.L", "ms"+strings.Repeat("ww", 20)+"b.bL", // slow
	"HbB$", "HbB$", "H.b.?b?~B$", // slashed, with many tickets
)

// leavings are the ends of a part that says L; who has not staked has the first.
var leavings = []string{"R", "h", "c$", "q$", "bc$", "bB$", "B?b$", "b.R", "bfc$", "bh"}

var bad = []string{"-1", "72 bpm", "1.5", "1e3", "0x10", "1_000", `"quoted"`, "\x1b[2J", "\a\x00", "سبعون", "７２", strings.Repeat("💓", 41), "\xfe\xfd", "a\rb", "%s%n",
	`[{"Index":0}]`, strings.Repeat("x", 41), strings.Repeat("y", maxLine+1), strings.Repeat("\x80", 60), "9223372036854775808", "helpme", strings.Repeat("long ", 300)}

// texts are what letters type, with a newline; b types the next BPM, and f does so without a newline.
var texts = map[byte][]string{
	's': {"1", "2", "007", "100", "333", "999"}, 'H': {"100000", "9223372036854775807"}, '0': {"0"}, '1': {"1\n1"}, 'b': {""}, 'f': {""},
	'x': append([]string{"0", "-5", "99999999999999999999999999", "-99999999999999999999999999"}, bad...), 'B': bad,
	'e': {"", " ", "\t"}, 'w': {"help", "?", "draw", "HELP", "Draw", "hElp", ""}, 'q': {"quit", "QUIT", "Quit"},
	'g': {"GET / HTTP/1.1\r\nHost: localhost:9000\r\nAccept: */*\r\n\r"}, 'N': {strings.Repeat("\x00\xfe\v~é", 400) + "\n\n\x80", "\x00\n\x1b\n"},
	'P': {strings.Repeat("0", maxLine-3) + "100"}, 'p': {strings.Repeat("0", maxLine-2) + "72"}, 'l': {strings.Repeat("0", maxLine) + "7", strings.Repeat("endless", 300)},
}

// play plays a part.
func (t *terminal) play(part string) {
	text := ""
	for i := 0; i < len(part); i++ {
		letter := part[i]
		if of := texts[letter]; of != nil {
			add, around, end := pick(t.r, of...), pick(t.r, "", "", "", " ", "\t"), pick(t.r, "\n", "\n", "\r\n")
			if letter == 'b' || letter == 'f' {
				add = pick(t.r, strconv.Itoa(t.bpm), "00"+strconv.Itoa(t.bpm), strconv.Itoa(t.bpm), strconv.Itoa(math.MaxInt-t.bpm))
				t.bpm++
			}
			if len(add) < 100 && letter != 'N' {
				add = pick(t.r, "", "", "", pick(t.r, telnet...)) + around + add + around
			}
			if text += add; letter != 'f' {
				text += end
			}
			continue
		}
		before, over := t.look()
		if over {
			break
		}
		t.say(text)
		text = ""
		switch letter {
		case 'L':
			part += pick(t.r, leavings[:map[bool]int{false: 4, true: len(leavings)}[strings.Contains(before, "\nyou are validator ")]]...)
		case '?': // perhaps not the next
			i += t.r.IntN(2)
		case '.': // all is answered
			t.await("an answer", func(heard string) bool {
				return strings.Count(heard, stakePrompt)+strings.Count(heard, bpmPrompt) > len(t.typed)+strings.Count(heard, winner)+strings.Count(heard, chain)
			})
		case 'W':
			t.await("a winner", func(heard string) bool {
				return strings.Count(heard, winner) > strings.Count(before, winner) || !strings.Contains(before, " proposed with ")
			})
		case 'i':
			t.await("the chain", func(heard string) bool { return strings.Count(heard, chain) > strings.Count(before, chain) })
		case '$':
			t.await("the end", func(string) bool { return false })
		case 'c':
			t.endedInput = t.note("ended its input", "") > 0
			t.conn.CloseWrite()
		case 'm', 'z', 'Z': // reads little and slowly; first not at all for a while; for so long that it may be cut off
			t.slow, t.stuck = true, letter == 'Z'
			t.lull.Store(int64(100 * time.Millisecond))
			t.conn.SetReadBuffer(4 << 10)
			t.rest.Store(int64(t.server.now() + pauses[letter]))
			t.idle(pauses[letter])
			t.rest.Store(0)
		case '~', '_':
			t.idle(time.Duration(t.r.Int64N(int64(pauses[letter]))))
		case 'h', 'R':
			t.hangUp(letter == 'R')
		}
	}
	t.hangUp(t.r.IntN(2) == 0)
}

var pauses = map[byte]time.Duration{'z': 4 * time.Second, 'Z': time.Minute, '~': 200 * time.Millisecond, '_': 5 * time.Second}

// idle does nothing for a time, unless everybody is to leave.
func (t *terminal) idle(d time.Duration) {
	until(d, func() bool { return t.server.leaving.Load() || t.server.ending.Load() })
}

// say types text, in two parts.
func (t *terminal) say(text string) {
	for line := range strings.Lines(text) {
		t.typed = append(t.typed, moment{at: t.note("typed", line), text: strings.TrimSuffix(line, "\n")})
	}
	t.conn.SetWriteDeadline(time.Now().Add(patience))
	cut := t.r.IntN(len(text) + 1)
	io.WriteString(t.conn, text[:cut]) // if that fails, there will be no answer
	io.WriteString(t.conn, text[cut:])
}

// await waits for what, which is there when that is so of all that was heard.
func (t *terminal) await(what string, so func(heard string) bool) {
	there := until(patience, func() bool {
		heard, over := t.look()
		return over || so(heard)
	})
	if !there && !t.server.ending.Load() && !t.slow {
		t.vain = what
	}
}

func pick(r *rand.Rand, of ...string) string { return of[r.IntN(len(of))] }
