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
	"math"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
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
	oldChain, oldDraws                string // the whole lines of the files, when no server runs
	mu                                sync.Mutex
	faults                            []string // guarded by mu
	count                             map[string]int
}

// A server is one process from its start to its end, and all that was seen of it. Times count from its start.
type server struct {
	*soak
	number, fresh    int // fresh: files that it had open before anybody came
	cmd              *exec.Cmd
	addr             string
	began            time.Time
	ending, exited   atomic.Bool    // the crowd is to leave, since it will end; it has
	crowd            sync.WaitGroup // members, and terminals that read
	pieces           []string       // of the draws file, moved away
	asked            time.Duration  // when it was told to end
	killed           bool           // by force
	first, drawsFrom int            // the first block that it may forge; how long the draws file was
	terminals        []*terminal    // guarded by mu

	chain, draws, console, errs string // the chain file at its end; what it added to the draws file; what it said

	// What the judge has learnt.
	blocks  []Block
	lines   []string // of the chain file, and
	ends    []int    // where these end
	records map[int]*record
	seals   map[int]string
}

// A terminal plays a part at one connection, and keeps what happens there: when it dialed, hung up, and heard the end, which
// is "EOF" or an error; what it waited for in vain; whether it ended its input, or does not read at once (slow);
// and all of it for people (log). What was heard is the listener's, under mu.
type terminal struct {
	name, heard, end, vain string
	dialed, hungUp, ended  time.Duration
	typed, came            []moment // lines, the last perhaps without its end; parts of what was heard
	endedInput, slow       bool
	log                    strings.Builder
	mu                     sync.Mutex
	server                 *server
	conn                   *net.TCPConn
	r                      *rand.Rand
	pause                  atomic.Int64 // before it reads
	bpm                    int          // that it types next

	// What the judge has learnt.
	judged, answered, tries, chains int           // how much of what was heard, and how many of the lines; stakes; broadcasts
	slashed, until, chainAt         time.Duration // until: the open round must not end before; chainAt: the last broadcast
	address, stake, last            string        // last: the kind of its last words
	next                            int           // the block whose winner it hears next; 0: not known
	open                            *entry        // in the open round
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
		s.faults = append(s.faults, err.Error())
	}
	cancel()
	stop()
	if len(s.faults) > 0 {
		fmt.Println(strings.Join(s.faults[:min(4, len(s.faults))], "\n"))
		fmt.Printf("soak: FAILED, seed %d: %d faults; the files and the servers' words are in %s\n", *seed, len(s.faults), s.dir)
		os.Exit(1)
	}
	os.RemoveAll(s.dir)
	fmt.Printf("soak ok, seed %d: %v\n", *seed, s.count)
}

// fail notes a fault, with all that happened at the terminal that saw it, if one did.
func (l *server) fail(t *terminal, format string, args ...any) {
	fault := fmt.Sprintf("server %d: ", l.number) + fmt.Sprintf(format, args...)
	if t != nil {
		fault = fmt.Sprintf("%s: %s\n%s", t.name, fault, &t.log)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.faults = append(l.faults, fault)
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
	if s.dir, err = os.MkdirTemp("", "soak-"); err != nil {
		return err
	}
	s.binary = filepath.Join(s.dir, "server.exe")
	s.chainFile, s.drawsFile = filepath.Join(s.dir, "chain.jsonl"), filepath.Join(s.dir, "draws.jsonl")
	build := exec.CommandContext(s.ctx, "go", "build", "-race", "-o", s.binary, "proofofstake")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("building the server: %w\n%s", err, out)
	}
	deadline, last := time.Now().Add(length), false
	for number := 1; len(s.faults) == 0 && !last; number++ {
		l := &server{soak: s, number: number}
		if err := l.start(); err != nil {
			return err
		}
		l.gather()
		left := max(time.Until(deadline), 6*time.Second)
		if last = left < 11*time.Second; !last {
			left = 2*time.Second + time.Duration(s.r.Int64N(4e9))
		}
		for end := time.Now().Add(left); time.Now().Before(end) && !l.exited.Load(); l.verify() {
			time.Sleep(min(time.Until(end), time.Second+time.Duration(s.r.Int64N(2e9))))
			piece := l.file(fmt.Sprintf("draws-%d", len(l.pieces)))
			if s.r.IntN(4) == 0 && os.Rename(s.drawsFile, piece) == nil {
				l.pieces = append(l.pieces, piece)
			}
		}
		l.finish(last)
		if err := s.tear(); err != nil {
			return err
		}
	}
	if s.ctx.Err() != nil || s.count["full"] == 0 {
		return fmt.Errorf("interrupted or late: %v; %d found the server full", s.ctx.Err(), s.count["full"])
	}
	return nil
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
func (l *server) start() error {
	l.first, l.drawsFrom = max(1, strings.Count(l.oldChain, "\n")), len(l.oldDraws)
	l.cmd, l.began = l.command(), time.Now()
	var err1, err2 error
	l.cmd.Stdout, err1 = os.Create(l.file("stdout"))
	l.cmd.Stderr, err2 = os.Create(l.file("stderr"))
	if err := errors.Join(err1, err2, l.cmd.Start()); err != nil {
		return err
	}
	l.crowd.Go(func() {
		l.cmd.Wait()
		l.exited.Store(true)
	})
	until(patience, func() bool {
		_, l.addr, _ = strings.Cut(strings.TrimSpace(read(l.file("stdout"))), "\nlistening on ")
		return l.addr != "" || l.exited.Load()
	})
	if l.fresh = l.files(); l.addr == "" {
		l.end(os.Kill)
		return fmt.Errorf("server %d does not listen: %s", l.number, read(l.file("stderr")))
	}
	return nil
}

func (l *server) now() time.Duration { return time.Since(l.began) }

// file is where something of this server is kept.
func (l *server) file(what string) string {
	return filepath.Join(l.dir, fmt.Sprintf("%d-%s", l.number, what))
}

// end has the server end.
func (l *server) end(by os.Signal) {
	l.asked, l.killed = l.now(), by != os.Interrupt && by != syscall.SIGTERM
	l.ending.Store(true)
	l.cmd.Process.Signal(by)
}

// verify runs the server's own check of the files.
func (l *server) verify() {
	out, err := l.command("verify").CombinedOutput()
	want := fmt.Sprintf("ok: %d blocks, ", strings.Count(l.oldChain, "\n"))
	if err != nil || l.exited.Load() && !strings.HasPrefix(string(out), want) {
		l.fail(nil, "verify says %q, %v, want %s", out, err, want)
	}
}

// files is how many files the server has open; 0 where that is not known.
func (l *server) files() int {
	files, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", l.cmd.Process.Pid))
	return len(files)
}

// forgotten reports whether the server has let go of everybody.
func (l *server) forgotten() bool {
	lists := strings.Split(read(l.file("stdout")), "validators: ")
	return l.files() <= l.fresh && strings.HasPrefix(lists[len(lists)-1], "0 with 0 tokens")
}

// finish ends a server, one way or another, and has it judged. The last must have let go of everybody, and shows its goroutines.
func (l *server) finish(last bool) {
	limit := patience
	switch {
	case l.exited.Load():
		l.ending.Store(true)
		l.fail(nil, "it ended by itself: %s", read(l.file("stderr")))
	case last:
		if l.ending.Store(true); !until(3*patience, l.forgotten) {
			l.fail(nil, "with nobody connected it has %d open files, fresh %d, or lists validators", l.files(), l.fresh)
		}
		l.end(syscall.SIGQUIT)
	case l.number == 1 || l.r.IntN(5) < 2:
		limit = stopLimit
		l.end([]os.Signal{os.Interrupt, syscall.SIGTERM}[l.r.IntN(2)])
	default:
		l.end(os.Kill)
	}
	if !until(limit, l.exited.Load) {
		l.fail(nil, "it goes on after %v", limit)
		l.cmd.Process.Kill()
	}
	l.crowd.Wait()
	l.count["servers"]++
	if !l.killed && l.cmd.ProcessState.ExitCode() != 0 {
		l.fail(nil, "it ended with %v", l.cmd.ProcessState)
	}
	var dump string
	if l.errs, dump, _ = strings.Cut(read(l.file("stderr")), "SIGQUIT: quit"); strings.Contains(dump, "handleConn") {
		l.fail(nil, "with nobody connected there are still handlers:\n%s", dump)
	}
	l.console, l.chain = read(l.file("stdout")), read(l.chainFile)
	for _, name := range append(l.pieces, l.drawsFile) {
		l.draws += read(name)
	}
	if !strings.HasPrefix(l.chain, l.oldChain) || !strings.HasPrefix(l.draws, l.oldDraws) {
		l.fail(nil, "the files no longer begin with what they held before")
		return
	}
	l.draws = l.draws[len(l.oldDraws):]
	l.oldChain, l.oldDraws = whole(l.chain), whole(read(l.drawsFile))
	l.judge()
	l.verify()
}

// tear does to the files what may happen to them while no server runs: the last line is half there, an editor has taken
// the last newline, or somebody has emptied the draws file.
func (s *soak) tear() error {
	last := s.oldChain[strings.LastIndex(strings.TrimSuffix(s.oldChain, "\n"), "\n")+1:]
	chain := pick(s.r, s.oldChain, s.oldChain+last[:len(last)/2], strings.TrimSuffix(s.oldChain, "\n"))
	draws := pick(s.r, s.oldDraws, s.oldDraws+last[:len(last)/2], "")
	if draws == "" {
		s.oldDraws = ""
	}
	return errors.Join(os.WriteFile(s.chainFile, []byte(chain), 0o600), os.WriteFile(s.drawsFile, []byte(draws), 0o600))
}

// gather has the crowd come, some more than there is room for.
func (l *server) gather() {
	for i := range maxClients + 20 {
		r := rand.New(rand.NewPCG(l.seed, uint64(l.number)<<32|uint64(i)))
		l.crowd.Go(func() {
			for n := 0; !l.ending.Load(); n++ {
				part := pick(r, parts...)
				if i < 3 && l.number%2 == 1 {
					part = "sb.R" // in a hurry
				} else {
					time.Sleep(time.Duration(r.IntN(300)) * time.Millisecond) // they do not all come at once
				}
				t := &terminal{name: fmt.Sprintf("member %d.%d (%s)", i, n, part), dialed: l.now(), server: l, r: r}
				if conn, err := net.Dial("tcp", l.addr); err == nil {
					t.conn = conn.(*net.TCPConn)
					t.play(part)
				} else if !l.ending.Load() && !l.exited.Load() {
					l.fail(t, "cannot connect: %v", err)
				}
			}
		})
	}
}

// note adds to the log.
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
		t.idle(time.Duration(t.pause.Load()))
		var n int
		n, err = t.conn.Read(buf)
		text := string(buf[:n])
		part := moment{at: t.note("heard", text), end: len(t.heard) + n}
		if strings.Contains(text, winner) {
			part.kept, part.drew = len(read(t.server.chainFile)), len(read(t.server.drawsFile))
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
}

// parts are what happens at terminals, one letter for each thing that somebody does: texts has what letters type, play has
// the others. Some play the first, which is what a person does.
var parts = append(slices.Repeat([]string{"s.?0b?b?e?w.?W~b?b.?W~?b?w.W?b.L"}, 5),
	"sbebbwbbb?B?b.L", "sb?bbL", "s"+strings.Repeat("b", 150)+".L", // pasted
	"sb?b?bc$", "sb?b?bfc$", // piped, the second without the last newline
	"?x.e?x?w.?x?x.s.bL", "w.ew.?qsw.beww.?W?q.L", "g$", "?s?bN.L", "Pp.l$", "?s.___L", "L", "?.s?~b?b?B?c~R",
	"?msb.bbbb_.L", "ms"+strings.Repeat("ww", 20)+"b.bL", "ms"+strings.Repeat("w", 20)+"B"+strings.Repeat("b", 150)+"$", // slow
	"HbB$", "HbB$", "H.b.?b?~B$", // slashed, with many tickets
)

// leavings are the ends of a part that says L; who has not staked has one of the first four.
var leavings = []string{"R", "h", "c$", "q$", "bc$", "bB$", "B?b$", "b.R", "bfc$", "bh"}

var bad = []string{"-1", "72 bpm", "1.5", "1e3", "0x10", "1_000", `"quoted"`, "\x1b[2J", "\a\x00", "سبعون", "７２", "\xfe\xfd",
	"a\rb", "%s%n", `[{"Index":0}]`, "9223372036854775808", "helpme", strings.Repeat("💓", 41), strings.Repeat("\x80", 60),
	strings.Repeat("x", 41), strings.Repeat("y", maxLine+1), strings.Repeat("long ", 300)}

// texts are what letters type, with a newline; b, p and f type the next BPM, p as long as it may be, f without a newline.
var texts = map[byte][]string{
	's': {"1", "2", "007", "100", "333", "999"}, 'H': {"100000", "9223372036854775807"}, '0': {"0"}, 'b': {""}, 'f': {""},
	'x': append([]string{"0", "-5", "99999999999999999999999999", "-99999999999999999999999999"}, bad...), 'B': bad,
	'e': {"", " ", "\t"}, 'w': {"help", "?", "draw", "HELP", "Draw", "hElp", ""}, 'q': {"quit", "QUIT", "Quit"},
	'g': {"GET / HTTP/1.1\r\nHost: localhost:9000\r\nAccept: */*\r\n\r"},
	'N': {strings.Repeat("\x00\xfe\v~é", 400) + "\n\n\x80", "\x00\n\x1b\n"},
	'P': {strings.Repeat("0", maxLine-3) + "100"}, 'p': {strings.Repeat("0", maxLine)},
	'l': {strings.Repeat("0", maxLine) + "7", strings.Repeat("endless", 300)},
}

// play plays a part.
func (t *terminal) play(part string) {
	l, text := t.server, ""
	l.mu.Lock()
	l.terminals = append(l.terminals, t)
	t.bpm = 1e6 + 200*len(l.terminals) // nobody types the same BPM as another, or twice
	l.mu.Unlock()
	l.crowd.Go(t.listen)
	for i := 0; i < len(part); i++ {
		letter := part[i]
		if of := texts[letter]; of != nil {
			add, around := pick(t.r, of...), pick(t.r, "", "", "", " ", "\t")
			if bpm := strconv.Itoa(t.bpm); letter == 'b' || letter == 'f' || letter == 'p' {
				add += pick(t.r, bpm, bpm, "00"+bpm, strconv.Itoa(math.MaxInt-t.bpm))
				add = add[max(0, len(add)-maxLine):]
				t.bpm++
			}
			if len(add) < 100 && letter != 'N' {
				add = pick(t.r, "", "", "", pick(t.r, telnet...)) + around + add + around
			}
			if text += add; letter != 'f' {
				text += pick(t.r, "\n", "\n", "\r\n")
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
			some := leavings
			if !strings.Contains(before, "\nyou are validator ") {
				some = leavings[:4]
			}
			part += pick(t.r, some...)
		case '?': // perhaps not the next
			i += t.r.IntN(2)
		case '.', 'W', '$': // all is answered; a round is won, if it has ever proposed; the end
			there := until(patience, func() bool {
				heard, over := t.look()
				won, prompts := strings.Count(heard, winner), strings.Count(heard, stakePrompt)+strings.Count(heard, bpmPrompt)
				return over || letter == '.' && prompts > len(t.typed)+won+strings.Count(heard, chain) ||
					letter == 'W' && (won > strings.Count(before, winner) || !strings.Contains(before, " proposed with "))
			})
			if !there && !l.ending.Load() && !t.slow {
				t.vain = map[byte]string{'.': "an answer", 'W': "a winner", '$': "the end"}[letter]
			}
		case 'c':
			t.endedInput = true
			t.note("ended its input", "")
			t.conn.CloseWrite()
		case 'm': // reads little and slowly from now on
			t.slow = true
			t.conn.SetReadBuffer(4 << 10)
			t.pause.Store(int64(100 * time.Millisecond))
		case '~':
			t.idle(time.Duration(t.r.Int64N(2e8)))
		case '_':
			t.idle(time.Duration(t.r.Int64N(5e9)))
		case 'h', 'R':
			t.hangUp(letter == 'R')
		}
	}
	t.hangUp(t.r.IntN(2) == 0)
}

// idle does nothing for a time, unless everybody is to leave.
func (t *terminal) idle(d time.Duration) {
	until(d, t.server.ending.Load)
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

func pick(r *rand.Rand, of ...string) string { return of[r.IntN(len(of))] }
