//go:build linux

package e2e

import (
	"cmp"
	"context"
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

// scripts are what clients type: first, and then after each announcement (see react).
var scripts = [][2]string{
	{"STAKE\nBPM\n", "BPM\n"},
	{"STAKE\n", "BPM\n\ndraw\nhelp\nBPM\n"},
	{"draw\n", "draw\n"},
	{"STAKE\nBPM\nBPM\n\ndraw\nhelp\nBPM\nquit\nBPM\n", ""},
	{"STAKE\nBPM\nEOF", ""},
	{"STAKE\nBPM\n", "BPM\nEOF"},
	{"10000\nBPM\n" + notABPM + "\n", ""}, // most of the tickets are slashed
	{"STAKE\nBPM\n", notABPM + "\nBPM\n"},
	{"GET / HTTP/1.1\r\nHost: x\r\nAccept: */*\r\n", ""},
}

// soak runs many clients against one server after the other, on the same files. The fields from killed on are about the
// last server.
type soak struct {
	t            *testing.T
	r            *rand.Rand
	dir          string
	chain, draws string          // the complete lines of the files when no server runs
	secrets      map[string]bool // of all draws
	lastDraw     string          // the hash of the last draw in the draws file, or "none"
	lost         int             // draws in the draws file that were not announced
	killed       bool            // or, with faults, perhaps unable to save its last block
	clients      []*soakClient
	told         map[string]bool // what clients were told, see checkClient
	hashes       []string        // of the blocks in the chain file
	records      map[int]record  // that the server added, by index
	seals        map[int]string  // that the server published, by index
}

// soakClient is one connection: what it typed (see react) and received.
type soakClient struct {
	typed, text string
	cut         bool // the server was killed or stopped before the text was complete
}

// record is a draw, repeated from its lines in the draws file.
type record struct {
	proposals map[string]string // "<BPM>: <first ticket> to <last ticket>" by address
	winner    string            // its address
	won       string            // how it is announced, up to the secret
}

const slashed = "slashed" // in the place of a BPM

// The lines of the two files.
var (
	blockLine = regexp.MustCompile(`^\{"Index":(\d+),"Timestamp":"(.{30})","BPM":(\d+),` +
		`"Hash":"(.{64})","PrevHash":"(.*)","Validator":"(.*)"\}\n$`)
	recordLine = regexp.MustCompile(`^\{"Index":([1-9]\d*),"Block":"(.{64})","Lines":\["` +
		`(\w{26}","\w{64}","(?:none|\w{64})(?:","[0-9a-f]{64} [1-9]\d* (?:\d+|slashed))+)"\],` +
		`"Ticket":(\d+),"Total":(\d+),"NextSeal":"(.{64})"\}\n$`)
)

// TestSoak kills or stops servers at random moments, and tears the files between. After each server it compares the
// files with what the clients received. The checks share no code with the server. With -faults, system calls on the
// files fail, wait or kill the server, which may then refuse to start, or not save its last block.
func TestSoak(t *testing.T) {
	t.Parallel()
	seed := cmp.Or(*soakSeed, uint64(time.Now().UnixNano()))
	dir, _ := os.MkdirTemp("", "soak-")
	t.Logf("seed %d; if the test fails, the files are left in %s", seed, dir)
	s := &soak{t: t, r: rand.New(rand.NewPCG(seed, 0)), dir: dir, secrets: map[string]bool{}, lastDraw: "none"}
	end := time.Now().Add(*soakTime)
	for n := 0; !t.Failed() && (n < 2 || time.Now().Before(end)); n++ {
		s.tear()
		s.run(*faults)
		s.checkClients()
	}
	expect(t, len(s.hashes) > 1, "no block was forged")
	trace, _ := os.ReadFile(s.dir + "/strace.log")
	injected := regexp.MustCompile(`(INJECTED|DELAYED)\)\n|= \?\n`).FindAll(trace, -1)
	t.Logf("%d blocks, %d faults", len(s.hashes), len(injected))
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

// run runs a server with some more clients than it has room for, ends it, and checks the files. If a fault prevents the
// start, it starts another server, without faults.
func (s *soak) run(faults bool) {
	p := server(s.t, s.dir, "ROUND=20ms BROADCAST=10ms BROADCAST_BLOCKS=4 MAX_CLIENTS=20")
	lifetime := time.Duration(100+s.r.IntN(800)) * time.Millisecond
	if faults {
		p.trace(s.faults()...)
		lifetime *= time.Duration(1 + s.r.IntN(3)) // time to retry
		s.t.Log(p.Args)
	}
	started, _ := p.launch().waitOrEnd(sealed + `listening on (\S+)\n`)
	if started == nil && faults {
		matches(s.t, p.result(), `(?s)^(-1 |1 .*(chain|draws)\.jsonl)`)
		s.run(false)
		return
	} else if started == nil {
		s.t.Fatal("the server does not start: ", p.result())
	}
	p.addr = started[3]
	ctx, stop := context.WithCancel(s.t.Context())
	defer stop()
	var mu sync.Mutex // guards s.clients
	var all sync.WaitGroup
	all.Go(func() { p.rest() })
	all.Go(func() { p.stderr.rest() })
	s.clients = nil
	for range 30 {
		r := rand.New(rand.NewPCG(s.r.Uint64(), 0))
		all.Go(func() {
			for ctx.Err() == nil {
				<-time.After(time.Duration(r.IntN(60)) * time.Millisecond)
				conn, err := net.DialTimeout("tcp", p.addr, timeout)
				if err != nil {
					expect(s.t, ctx.Err() != nil || faults, "%v", err)
					return
				}
				conn.SetDeadline(time.Now().Add(timeout))
				numbers := strings.NewReplacer("STAKE", strconv.Itoa(1+r.IntN(300)), "BPM", strconv.Itoa(60+r.IntN(40)))
				script := scripts[r.IntN(len(scripts))]
				first, again := numbers.Replace(script[0]), numbers.Replace(script[1])
				c := &soakClient{typed: first + again}
				c.text, err = react(conn.(*net.TCPConn), first, again)
				expect(s.t, !errors.Is(err, os.ErrDeadlineExceeded), "%q was not answered:\n%s", c.typed, c.text)
				c.cut = c.text == "" && ctx.Err() != nil // the server ended before it accepted the connection
				mu.Lock()
				s.clients = append(s.clients, c)
				mu.Unlock()
			}
		})
	}
	<-time.After(lifetime)
	signal := []os.Signal{os.Interrupt, syscall.SIGTERM, os.Kill, os.Kill}[s.r.IntN(4)]
	s.killed = faults || signal == os.Kill
	stop()
	p.Process.Signal(signal)
	all.Wait()
	matches(s.t, p.result(), map[bool]string{false: "^0 ", true: "^(0|-1) "}[s.killed])
	warnings := regexp.MustCompile("(?m)^.*(partial last line|missing newline|full|room again|more than a second).*\n")
	unexpected := warnings.ReplaceAllString(p.stderr.text, "")
	expect(s.t, unexpected == "" || faults, "unexpected in the log: %s", unexpected)
	s.checkFiles(started[2])
}

// tear does to the files what may happen while no server runs: a partial last line, no last newline, no draws file.
func (s *soak) tear() {
	const part, record = `{"Index":0,"Times`, `{"Index":12,"Blo`
	chain := []string{s.chain, s.chain + part, strings.TrimSuffix(s.chain, "\n")}[s.r.IntN(3)]
	os.WriteFile(s.dir+"/chain.jsonl", []byte(chain), 0o644)
	os.WriteFile(s.dir+"/draws.jsonl", []byte(s.draws+record[:s.r.IntN(len(record))]), 0o644)
	if s.r.IntN(3) == 0 {
		os.Remove(s.dir + "/draws.jsonl")
		s.draws, s.lastDraw, s.lost = "", "none", 0
	}
}

// read returns the complete lines of a file.
func (s *soak) read(name string) string {
	text, _ := os.ReadFile(s.dir + "/" + name)
	return string(text[:strings.LastIndex(string(text), "\n")+1])
}

// number returns the number that is written in text.
func number(text string) int {
	n, _ := strconv.Atoi(text)
	return n
}

// checkFiles checks the chain file, and what the server, which published this seal at its start, added to the draws.
func (s *soak) checkFiles(seal string) {
	oldChain, oldDraws := s.chain, s.draws
	s.chain, s.draws = s.read("chain.jsonl"), s.read("draws.jsonl")
	if !strings.HasPrefix(s.chain, oldChain) || !strings.HasPrefix(s.draws, oldDraws) {
		s.t.Fatal("the files no longer start with their old contents")
	}
	s.hashes = nil
	head := make([]string, 7)
	for line := range strings.Lines(s.chain) {
		b := blockLine.FindStringSubmatch(line)
		if b == nil || number(b[1]) != len(s.hashes) || b[2] < head[2] || b[5] != head[4] ||
			b[4] != hashLines(b[1], b[2], b[3], b[5], b[6]) {
			s.t.Fatalf("chain file: no valid block after %q: %s", head[0], line)
		}
		head, s.hashes = b, append(s.hashes, b[4])
	}
	first := max(1, strings.Count(oldChain, "\n")) // the first block that the server may have added
	s.records, s.seals = map[int]record{}, map[int]string{first: seal}
	for line := range strings.Lines(s.draws[len(oldDraws):]) {
		if err := s.checkRecord(line); err != nil {
			s.t.Fatalf("draws file: %v: %s", err, line)
		}
	}
	for i := first; i < len(s.hashes); i++ {
		expect(s.t, s.records[i].won != "", "block %d has no draw record", i)
	}
	verifies(s.t, s.dir, fmt.Sprintf(`ok: %d draws?(?:; .*record)?%s(?:;(?s:.*))?`,
		strings.Count(s.draws, "\n")-s.lost, strings.Repeat(`; \d+ draws? not announced \(.*\)`, min(s.lost, 1))))
}

// checkRecord repeats a draw, and compares it with its seal and its block, and with the block and the draw before.
func (s *soak) checkRecord(line string) error {
	m := recordLine.FindStringSubmatch(line)
	if m == nil {
		return errors.New("not a record")
	}
	lines, proposals := strings.Split(m[3], `","`), map[string]string{}
	var pool []string // the line of the proposal to which each ticket belongs
	for _, line := range lines[3:] {
		e, first := strings.Fields(line), len(pool)+1
		pool = append(pool, slices.Repeat([]string{line}, number(e[1]))...)
		proposals[e[0]] = fmt.Sprintf("%s: %d to %d", e[2], first, len(pool))
	}
	hash := hashLines(lines...)
	winner, outcome := pick(hash, pool)
	address, bpm := winner[:64], winner[strings.LastIndex(winner, " ")+1:]
	index, secret, seal := number(m[1]), lines[0], hashLines(lines[:3]...)
	unsaved := s.killed && index == len(s.hashes) // the server was killed before it saved the block
	if unsaved {
		s.lost++
	}
	inChain := fmt.Sprintf(`"BPM":%s,"Hash":"%s","PrevHash":"%s","Validator":"%s"}`, bpm, m[2], lines[1], address)
	switch {
	case len(proposals) != len(lines)-3 || !strings.HasSuffix(outcome, fmt.Sprintf("ticket %s of %s", m[4], m[5])):
		return fmt.Errorf("repeating it gives %q and the proposals %v", outcome, proposals)
	case s.records[index].won != "" || s.seals[index] != seal || s.secrets[secret]:
		return errors.New("a second draw, not the secret that was sealed, or a secret that was used before")
	case lines[1] != s.hashes[index-1] || lines[2] != s.lastDraw:
		return fmt.Errorf("it does not name the block and the draw (%s) before it", s.lastDraw)
	case !unsaved && !strings.Contains(s.chain, inChain):
		return fmt.Errorf("the chain does not have this block: %s", inChain)
	}
	s.records[index] = record{proposals: proposals, winner: address, won: fmt.Sprintf(
		"\nwinning validator: %s\nblock %d, BPM %s: %s\ndraw %[2]d secret: %[5]s\n", address, index, bpm, outcome, secret)}
	s.seals[index+1], s.secrets[secret], s.lastDraw = m[6], true, hash
	return nil
}

// pick returns the line of the proposal that a hash picks from the pool, and its ticket. If it was slashed, there is a
// redraw.
func pick(hash string, pool []string) (winner, outcome string) {
	n, _ := new(big.Int).SetString(hash, 16)
	i := n.Mod(n, big.NewInt(int64(len(pool)))).Int64()
	winner, outcome = pool[i], fmt.Sprintf("ticket %d of %d", i+1, len(pool))
	if strings.HasSuffix(winner, slashed) {
		eligible := slices.DeleteFunc(pool, func(line string) bool { return strings.HasSuffix(line, slashed) })
		first := outcome
		winner, outcome = pick(hashLines(hash), eligible)
		outcome = first + " was slashed; redraw: " + outcome
	}
	return winner, outcome
}

// checkClients compares what the clients received with the files.
func (s *soak) checkClients() {
	s.told = map[string]bool{}
	for _, c := range s.clients {
		if err := s.checkClient(c); err != nil {
			s.t.Fatalf("a client typed %q: %v:\n%s", c.typed, err, c.text)
		}
	}
	for index, d := range s.records {
		for address, tickets := range d.proposals {
			ok := s.told[fmt.Sprint(index, address)] || s.told["cut "+address] || s.told["cut "]
			expect(s.t, ok, "block %d: nobody proposed %s with BPM %s", index, address, tickets)
		}
	}
}

// checkClient compares what a client received with the files. It notes in s.told each address, each proposal that was
// accepted, and the addresses of clients that may have missed an answer.
func (s *soak) checkClient(c *soakClient) error {
	find := func(pattern string) [][]string { return regexp.MustCompile(pattern).FindAllStringSubmatch(c.text, -1) }
	address := ""
	for _, m := range find(joined) {
		if address = m[1]; s.seals[number(m[2])] != m[3] || s.told[address] {
			return fmt.Errorf("wrong seal, or duplicate address: %q", m[0])
		}
		s.told[address] = true
	}
	announced, last := 0, 0 // the indices of the last announcement and the last proposal
	for _, m := range find(won + "(" + forged + ")?" + sealed) {
		index := number(m[2])
		if index >= len(s.hashes) || announced > 0 && index != announced+1 {
			return fmt.Errorf("not in the files, or out of order: %q", m[0])
		}
		want := s.records[index].won
		if s.records[index].winner == address {
			want += fmt.Sprintf("you forged block %d\n", index)
		}
		if m[0] != want+fmt.Sprintf("draw %d seal: %s\n", index+1, s.seals[index+1]) {
			return fmt.Errorf("not what was drawn: %q", m[0])
		}
		announced = index
	}
	for _, m := range find(drawLines) {
		lines := strings.ReplaceAll(strings.TrimSpace(m[3]), "\n", `","`)
		if ok, _ := regexp.MatchString(`"Index":`+m[1]+`,"Block":".{64}","Lines":\["`+lines+`"]`, s.draws); !ok {
			return fmt.Errorf("not the lines of that draw: %q", m[0])
		}
	}
	wasSlashed := strings.Contains(c.typed, notABPM)
	for _, m := range find(proposed) {
		last = number(m[1])
		tickets := m[3] + " to " + cmp.Or(m[4], m[3])
		drawn, ok := s.records[last].proposals[address]
		counted := drawn == m[2]+": "+tickets || wasSlashed && drawn == slashed+": "+tickets
		notDrawn := !ok && (wasSlashed || s.killed && s.records[last].won == "")
		if s.told[m[1]+address] || !counted && !notDrawn {
			return fmt.Errorf("a second proposal, or not what the draw has (%s): %q", drawn, m[0])
		}
		s.told[m[1]+address] = true
	}
	for _, m := range find(`\n\[(.*)\]\n`) {
		if !strings.Contains(strings.ReplaceAll(s.chain, "\n", ","), m[1]+",") {
			return fmt.Errorf("not the chain: %q", m[0])
		}
	}
	left := find("(?:"+goodbye+"|"+isSlashed+"|"+tooMany+"|"+serverFull+")$") != nil
	stopped := find(shutdown+"$") != nil
	c.cut = c.cut || s.killed && !left
	switch {
	case c.cut:
		s.told["cut "+address] = true
	case left:
	case !stopped && !strings.HasSuffix(c.typed, "EOF"):
		return errors.New("disconnected without a reason")
	case announced < last || stopped && announced > 0 && announced < len(s.hashes)-1:
		return errors.New("a winner was not announced")
	}
	return nil
}
