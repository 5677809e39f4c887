//go:build linux

package e2e

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/big"
	"math/rand/v2"
	"net"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

var (
	soakTime = flag.Duration("soak", 3*time.Second, "how long TestSoak runs")
	soakSeed = flag.Uint64("seed", 0, "random seed of TestSoak; 0 uses the clock")
	faults   = flag.Bool("faults", false, "whether TestSoak injects faults into system calls, with strace")
)

// scripts are what clients type: first, and after the "|" what they type after each announcement (see react).
var scripts = []string{
	"STAKE\nBPM\n|BPM\n",
	"STAKE\n|BPM\n\ndraw\nhelp\nBPM\n",
	"draw\n|draw\n",
	"STAKE\nBPM\nBPM\n\ndraw\nhelp\nBPM\nquit\nBPM\n|",
	"STAKE\nBPM\nEOF|",
	"STAKE\nBPM\n|BPM\nEOF",
	"10000\nBPM\n" + notABPM + "\n|", // most of the tickets are slashed
	"STAKE\nBPM\n|" + notABPM + "\nBPM\n",
	"GET / HTTP/1.1\r\nHost: x\r\nAccept: */*\r\n|",
}

// soak runs one server after the other on the same files. It holds what the checks have found in them.
type soak struct {
	t            *testing.T
	r            *rand.Rand
	dir          string
	chain, draws string            // the contents of the files
	blocks       []block           // of the chain
	lastDraw     string            // the hash of the last draw, or "none"
	seals        map[int]string    // the last one published, by index of the draw
	won          map[int]string    // how a block is announced, up to the secret
	proposals    map[string]string // "<BPM>: <first ticket> to <last ticket>", by "<index> <address>"
}

// block and record are what a line of the two files holds.
type block struct {
	Index, BPM                           int
	Timestamp, Hash, PrevHash, Validator string
}
type record struct {
	Index, Ticket, Total int
	Block, NextSeal      string
	Lines                []string
}

// soakClient is a connection: its script, and what it received.
type soakClient struct{ script, text string }

// TestSoak kills or stops servers at random moments. After each of them it compares the files with what the clients
// received. The checks share no code with the server. With -faults, system calls on the files fail, wait or kill the
// server, which may then refuse to start, or not save its last block.
func TestSoak(t *testing.T) {
	t.Parallel()
	seed := cmp.Or(*soakSeed, uint64(time.Now().UnixNano()))
	dir, _ := os.MkdirTemp("", "soak-")
	t.Logf("seed %d; if the test fails, the files are left in %s", seed, dir)
	s := &soak{t: t, r: rand.New(rand.NewPCG(seed, 0)), dir: dir, lastDraw: "none",
		seals: map[int]string{}, won: map[int]string{}, proposals: map[string]string{}}
	end := time.Now().Add(*soakTime)
	for n := 0; !t.Failed() && (n < 2 || time.Now().Before(end)); n++ {
		s.run(*faults && n%3 > 0)
	}
	expect(t, len(s.blocks) > 1, "no block was forged")
	trace, _ := os.ReadFile(dir + "/strace.log")
	t.Logf("%d blocks, %d faults", len(s.blocks), strings.Count(string(trace), "ED)\n")) // INJECTED or DELAYED
	if !t.Failed() {
		os.RemoveAll(dir)
	}
}

// faults returns options of strace for up to three random faults in what a server does with its files.
func (s *soak) faults() []string {
	args := strings.Fields("-e trace=openat,flock,pwrite64,fsync,ftruncate -P . -P chain.jsonl -P draws.jsonl -P " +
		s.dir + "/chain.jsonl -P " + s.dir + "/draws.jsonl")
	calls := strings.Fields("openat flock ftruncate pwrite64 pwrite64 fsync fsync fsync")
	faults := strings.Fields("error=ENOSPC error=EIO error=EINTR signal=SIGKILL " +
		"delay_enter=2000 delay_enter=1500000 delay_exit=50000") // in µs
	for range 1 + s.r.IntN(3) {
		first := 1 + s.r.IntN(1<<s.r.IntN(5)) // counts the calls of each thread
		args = append(args, "-e", fmt.Sprintf("inject=%s:%s:when=%d..%d", calls[s.r.IntN(len(calls))],
			faults[s.r.IntN(len(faults))], first, first+s.r.IntN(1<<s.r.IntN(10))))
	}
	return args
}

// run runs a server with some more clients than it has room for, ends it, and checks its files and clients.
func (s *soak) run(faults bool) {
	p := server(s.t, s.dir, "ROUND=20ms BROADCAST=10ms BROADCAST_BLOCKS=4 MAX_CLIENTS=20")
	lifetime := time.Duration(100+s.r.IntN(800)) * time.Millisecond
	if faults {
		p.trace(s.faults()...)
		lifetime *= time.Duration(1 + s.r.IntN(3)) // time to retry
		s.t.Log(p.Args)
	}
	started := p.launch().waitOrEnd(sealed + `listening on (\S+)\n`)
	if started == nil {
		matches(s.t, p.result(), `(?s)^(-1 |1 .*(chain|draws)\.jsonl)`)
		expect(s.t, faults, "the server does not start")
		return
	}
	ctx, stop := context.WithTimeout(s.t.Context(), lifetime)
	defer stop()
	var all sync.WaitGroup
	all.Go(func() { p.result() })
	var clients [30][]soakClient
	for i := range clients {
		r := rand.New(rand.NewPCG(s.r.Uint64(), 0))
		all.Go(func() { clients[i] = s.play(ctx, r, started[3], faults) })
	}
	signal := []os.Signal{os.Interrupt, syscall.SIGTERM, os.Kill, os.Kill}[s.r.IntN(4)]
	<-ctx.Done()
	p.Process.Signal(signal)
	all.Wait()
	matches(s.t, p.result(), "^(0|-1) ")
	expected := regexp.MustCompile("^(.*(full|more than a second).*\n)*$")
	expect(s.t, faults || expected.MatchString(p.stderr.text), "in the log: %s", p.stderr.text)
	killed := faults || signal == os.Kill // or perhaps unable to save the last block
	index, _ := strconv.Atoi(started[1])
	s.seals[index] = started[2]
	s.checkFiles(killed)
	for _, c := range slices.Concat(clients[:]...) {
		if err := s.checkClient(c, killed); err != nil {
			s.t.Fatalf("a client typed %q: %v:\n%s", c.script, err, c.text)
		}
	}
}

// play connects clients, one after the other, until ctx is done.
func (s *soak) play(ctx context.Context, r *rand.Rand, addr string, faults bool) (clients []soakClient) {
	for ctx.Err() == nil {
		<-time.After(time.Duration(r.IntN(60)) * time.Millisecond)
		conn, err := net.DialTimeout("tcp", addr, timeout)
		if err != nil {
			expect(s.t, ctx.Err() != nil || faults, "%v", err)
			break
		}
		numbers := strings.NewReplacer("STAKE", strconv.Itoa(1+r.IntN(300)), "BPM", strconv.Itoa(50+r.IntN(10)))
		script := numbers.Replace(scripts[r.IntN(len(scripts))])
		first, again, _ := strings.Cut(script, "|")
		text, err := react(conn, first, again)
		expect(s.t, !errors.Is(err, os.ErrDeadlineExceeded), "%q was not answered:\n%s", script, text)
		if text != "" || ctx.Err() == nil { // otherwise the server ended before it accepted the connection
			clients = append(clients, soakClient{script, text})
		}
	}
	return clients
}

// added returns the complete lines that were added to a file, whose contents were *old.
func (s *soak) added(name string, old *string) []string {
	text, _ := os.ReadFile(s.dir + "/" + name)
	added, ok := strings.CutPrefix(string(text), *old)
	if !ok {
		s.t.Fatalf("%s no longer starts with its old contents", name)
	}
	added = added[:strings.LastIndex(added, "\n")+1]
	*old += added
	return slices.Collect(strings.Lines(added))
}

// checkFiles checks what a server added to the files.
func (s *soak) checkFiles(killed bool) {
	for _, line := range s.added("chain.jsonl", &s.chain) {
		var b, head block
		if json.Unmarshal([]byte(line), &b); len(s.blocks) > 0 {
			head = s.blocks[len(s.blocks)-1]
		}
		hash := hashLines(strconv.Itoa(b.Index), b.Timestamp, strconv.Itoa(b.BPM), b.PrevHash, b.Validator)
		if b.Index != len(s.blocks) || b.Timestamp < head.Timestamp || b.PrevHash != head.Hash || b.Hash != hash {
			s.t.Fatalf("chain file: no valid block after %+v: %s", head, line)
		}
		s.blocks = append(s.blocks, b)
	}
	for _, line := range s.added("draws.jsonl", &s.draws) {
		if err := s.checkDraw(line, killed); err != nil {
			s.t.Fatalf("draws file: %v: %s", err, line)
		}
	}
	expect(s.t, len(s.won) == len(s.blocks)-1, "%d draws of %d blocks", len(s.won), len(s.blocks)-1)
	ok := fmt.Sprintf(`^0 ok: %d blocks?, .*\nok: %d draws?\b(?s:.*)2> $`, len(s.blocks), len(s.won))
	matches(s.t, run(s.t, s.dir, "verify"), ok)
}

// checkDraw repeats a draw, and compares it with its seal and its block, and with the block and the draw before.
func (s *soak) checkDraw(line string, killed bool) error {
	var r record
	var pool []string // for each ticket, the line of its proposal
	json.Unmarshal([]byte(line), &r)
	for _, line := range r.Lines[3:] {
		f, first := strings.Fields(line), len(pool)+1
		stake, _ := strconv.Atoi(f[1])
		pool = append(pool, slices.Repeat([]string{line}, stake)...)
		key := fmt.Sprint(r.Index, " ", f[0])
		if s.proposals[key] != "" {
			return errors.New("a validator proposed twice")
		}
		s.proposals[key] = fmt.Sprintf("%s: %d to %d", f[2], first, len(pool))
	}
	var winner, outcome string // outcome is as in the announcement
	pick := func(hash string) {
		n, _ := new(big.Int).SetString(hash, 16)
		i := n.Mod(n, big.NewInt(int64(len(pool)))).Int64()
		winner, outcome = pool[i], outcome+fmt.Sprintf("ticket %d of %d", i+1, len(pool))
	}
	hash, isVoid := hashLines(r.Lines...), func(line string) bool { return strings.HasSuffix(line, "slashed") }
	if pick(hash); isVoid(winner) {
		pool, outcome = slices.DeleteFunc(pool, isVoid), outcome+" was slashed; redraw: "
		pick(hashLines(hash))
	}
	switch {
	case !strings.HasSuffix(outcome, fmt.Sprintf("ticket %d of %d", r.Ticket, r.Total)):
		return fmt.Errorf("repeating it gives %s", outcome)
	case hashLines(r.Lines[:3]...) != s.seals[r.Index]:
		return fmt.Errorf("its seal is not %q", s.seals[r.Index])
	case r.Lines[1] != s.blocks[r.Index-1].Hash || r.Lines[2] != s.lastDraw:
		return fmt.Errorf("it does not name the block and the draw (%s) before it", s.lastDraw)
	}
	s.seals[r.Index+1], s.lastDraw = r.NextSeal, hash
	if killed && r.Index == len(s.blocks) { // before it saved the block
		return nil
	}
	b := s.blocks[r.Index]
	if s.won[r.Index] != "" || b.Hash != r.Block || !strings.HasPrefix(winner, b.Validator+" ") ||
		!strings.HasSuffix(winner, fmt.Sprint(" ", b.BPM)) {
		return fmt.Errorf("a second draw, or not the winner of %+v", b)
	}
	s.won[r.Index] = fmt.Sprintf("\nwinning validator: %s\nblock %d, BPM %d: %s\ndraw %[2]d secret: %[5]s\n",
		b.Validator, b.Index, b.BPM, outcome, r.Lines[0])
	return nil
}

// checkClient compares what a client received with the files.
func (s *soak) checkClient(c soakClient, killed bool) error {
	find := func(pattern string) [][]string { return regexp.MustCompile(pattern).FindAllStringSubmatch(c.text, -1) }
	address, announced, last := "nobody", 0, 0 // the indices of the last announcement and the last proposal
	for _, m := range find(joined) {
		index, _ := strconv.Atoi(m[2])
		if address = m[1]; s.seals[index] != m[3] {
			return fmt.Errorf("not the seal: %q", m[0])
		}
	}
	for _, m := range find(won + "(?:" + forged + ")?" + sealed) {
		index, _ := strconv.Atoi(m[2])
		want := s.won[index]
		if strings.Contains(want, address) {
			want += regexp.MustCompile(forged).FindString(m[0])
		}
		want += fmt.Sprintf("draw %d seal: %s\n", index+1, s.seals[index+1])
		if m[0] != want || announced > 0 && index != announced+1 {
			return fmt.Errorf("out of order, or not %q: %q", want, m[0])
		}
		announced = index
	}
	mayBeSlashed := strings.Contains(c.script, notABPM)
	for _, m := range find(proposed) {
		last, _ = strconv.Atoi(m[1])
		drawn, tickets := s.proposals[m[1]+" "+address], ": "+m[3]+" to "+cmp.Or(m[4], m[3])
		notDrawn := drawn == "" && (mayBeSlashed || killed && last == len(s.blocks))
		if drawn != m[2]+tickets && !(mayBeSlashed && drawn == "slashed"+tickets) && !notDrawn {
			return fmt.Errorf("the draw has %q: %q", drawn, m[0])
		}
	}
	for _, m := range find(`\n\[(.*)\]\n`) {
		if !strings.Contains(s.chain, strings.ReplaceAll(m[1], "},{", "}\n{")+"\n") {
			return fmt.Errorf("not the chain: %q", m[0])
		}
	}
	left, stopped := find("(goodbye\n|"+isSlashed+"|the server is full; .*\n)$") != nil, find(shutdown+"$") != nil
	switch {
	case left, killed:
	case !stopped && !strings.Contains(c.script, "EOF"):
		return errors.New("disconnected without a reason")
	case announced < last || stopped && announced > 0 && announced < len(s.blocks)-1:
		return errors.New("a winner was not announced")
	}
	return nil
}
