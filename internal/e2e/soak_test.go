//go:build linux

package e2e

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"math/big"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
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
	{"1000000\nBPM\n" + notABPM + "\n", ""}, // most of the tickets are slashed
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
	lastSeal     string          // how verify ends if it is right about that draw
	lost         []string        // lines in the draws file of draws that were not announced
	starts       int             // with faults
	killed       bool            // or, with faults, perhaps unable to save its last block
	seal         string          // that the server printed at its start
	clients      []*soakClient
	blocks       [][]string      // of the chain file, as submatches of blockLine
	records      map[int]*record // that the server added, by index
	seals        map[int]string  // that the server published, by index
}

// soakClient is one connection: what it typed (see react) and received, and what checkClient found.
type soakClient struct {
	first, again, text string
	cut                bool // the server was killed or stopped before the text was complete
	address            string
	proposals          map[int]bool // that were accepted, by index
}

// record is a draw, repeated from its lines in the draws file. Entries are by address.
type record struct {
	lines             []string
	entries           map[string]entry
	winner            entry
	outcome, nextSeal string // as they are announced
}

// entry is a proposal. Tickets are "<first> to <last>".
type entry struct {
	address, bpm, tickets string
	stake                 int
}

const slashed = "slashed" // in the place of a BPM

// The lines of the two files, and of a draw.
var (
	blockLine = regexp.MustCompile(`^\{"Index":(\d+),"Timestamp":"(.{30})","BPM":(\d+),` +
		`"Hash":"(.{64})","PrevHash":"(.*)","Validator":"(.*)"\}\n$`)
	recordLine = regexp.MustCompile(`^\{"Index":(\d+),"Block":"(.{64})",` +
		`"Lines":\["(.*)"\],"Ticket":(\d+),"Total":(\d+),"NextSeal":"(.{64})"\}\n$`)
	entryLine = regexp.MustCompile(`^([0-9a-f]{64}) ([1-9]\d*) (\d+|slashed)$`)
)

// TestSoak kills or stops servers at random moments, and tears the files between. After each server it compares the
// files with what the clients received. The checks share no code with the server. With -faults, system calls on the
// files fail, wait or kill the server, which may then refuse to start, or not save its last block.
func TestSoak(t *testing.T) {
	t.Parallel()
	seed := cmp.Or(*soakSeed, uint64(time.Now().UnixNano()))
	dir, _ := os.MkdirTemp("", "soak-")
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("seed %d; the files are in %s", seed, dir)
		} else {
			os.RemoveAll(dir)
		}
	})
	s := &soak{t: t, r: rand.New(rand.NewPCG(seed, 0)), dir: dir, secrets: map[string]bool{}, lastDraw: "none"}
	end := time.Now().Add(*soakTime)
	for n := 0; !t.Failed() && (n < 2 || time.Now().Before(end)); n++ {
		s.killed = n%2 == 1
		s.tear()
		s.run(*faults)
		s.checkFiles()
		s.checkClients()
	}
	expect(t, len(s.blocks) > 1, "no block was forged")
	trace, _ := os.ReadFile(s.dir + "/strace.log")
	injected := regexp.MustCompile(`(INJECTED|DELAYED)\)\n|= \?\n`).FindAll(trace, -1)
	t.Logf("seed %d: %d blocks, %d starts with %d faults", seed, len(s.blocks), s.starts, len(injected))
}

// faults returns options of strace for up to three random faults in what a server does with its files.
func (s *soak) faults() []string {
	args := []string{"-e", "trace=openat,flock,pwrite64,fsync,ftruncate", "-P", "."}
	for _, name := range []string{"chain.jsonl", "draws.jsonl"} {
		args = append(args, "-P", name, "-P", filepath.Join(s.dir, name))
	}
	for range 1 + s.r.IntN(3) {
		call := strings.Fields("openat flock ftruncate pwrite64 pwrite64 fsync fsync fsync")[s.r.IntN(8)]
		fault := strings.Fields("error=ENOSPC error=EIO error=EINTR signal=SIGKILL delay_enter= delay_exit=")[s.r.IntN(6)]
		if strings.HasPrefix(fault, "delay") {
			fault += strconv.Itoa(1 << s.r.IntN(22)) // in microseconds, so up to 2 s
		}
		when := strconv.Itoa(1 + s.r.IntN(1<<s.r.IntN(5))) // counts the calls of each thread
		if fault != "error=EINTR" && s.r.IntN(2) == 0 {    // Go retries EINTR immediately and forever
			when += "+" + strconv.Itoa(1+s.r.IntN(5))
		}
		args = append(args, "-e", "inject="+call+":"+fault+":when="+when)
	}
	return args
}

// run runs a server with some more clients than it has room for, and ends it. If a fault prevents the start, it starts
// another server, without faults.
func (s *soak) run(faults bool) {
	p := server(s.t, s.dir, "ROUND=20ms BROADCAST=10ms BROADCAST_BLOCKS=4 MAX_CLIENTS=20")
	lifetime := 100 + s.r.IntN(800)
	if faults {
		s.starts++
		p.trace(s.faults()...)
		lifetime *= 1 + s.r.IntN(3) // time to retry
		s.t.Log("start", s.starts, p.Args)
	}
	if started, _ := p.launch().waitOrEnd(sealed); started == nil && faults {
		matches(s.t, p.result(), `(?s)^(-1 |1 .*(chain|draws)\.jsonl)`)
		s.run(false)
		return
	}
	p.listens()
	ctx, stop := context.WithCancel(s.t.Context())
	defer stop()
	var mu sync.Mutex // guards s.clients
	var all sync.WaitGroup
	all.Go(func() { p.rest() })
	all.Go(func() { p.stderr.rest() })
	watched := p.connect(64 << 10)
	all.Go(func() { s.watch(watched) })
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
				c := &soakClient{first: numbers.Replace(script[0]), again: numbers.Replace(script[1]), proposals: map[int]bool{}}
				c.text, err = react(conn.(*net.TCPConn), c.first, c.again)
				expect(s.t, !errors.Is(err, os.ErrDeadlineExceeded), "%q was not answered:\n%s", script, c.text)
				c.cut = c.text == "" && ctx.Err() != nil // the server ended before it accepted the connection
				mu.Lock()
				s.clients = append(s.clients, c)
				mu.Unlock()
			}
		})
	}
	<-time.After(time.Duration(lifetime) * time.Millisecond)
	signal := []os.Signal{os.Interrupt, syscall.SIGTERM}[s.r.IntN(2)]
	if s.killed {
		signal = os.Kill
	}
	s.killed = s.killed || faults
	stop()
	p.Process.Signal(signal)
	all.Wait()
	matches(s.t, p.result(), map[bool]string{false: "^0 ", true: "^(0|-1) "}[s.killed])
	warnings := regexp.MustCompile("(?m)^.*(partial last line|missing newline|full|room again|more than a second).*\n")
	unexpected := warnings.ReplaceAllString(p.stderr.text, "")
	expect(s.t, unexpected == "" || faults, "unexpected in the log: %s", unexpected)
	s.seal = regexp.MustCompile(sealed).FindStringSubmatch(p.text)[2]
}

// watch reads announcements. It expects each block and the record of its draw to be in the files by then.
func (s *soak) watch(conn net.Conn) {
	announced := regexp.MustCompile(`^block (\d+), BPM`)
	for in := bufio.NewScanner(conn); in.Scan(); {
		if m := announced.FindStringSubmatch(in.Text()); m != nil {
			line := `{"Index":` + m[1] + ","
			saved := strings.Contains(s.read("chain.jsonl"), line) && strings.Contains(s.read("draws.jsonl"), line)
			expect(s.t, saved, "block %s was announced before it and its draw were saved", m[1])
		}
	}
}

// tear does to the files what may happen while no server runs: a partial last line, no last newline, no draws file.
func (s *soak) tear() {
	const part, record = `{"Index":0,"Times`, `{"Index":12,"Blo`
	chain := []string{s.chain, s.chain + part, strings.TrimSuffix(s.chain, "\n")}[s.r.IntN(3)]
	os.WriteFile(s.dir+"/chain.jsonl", []byte(chain), 0o644)
	os.WriteFile(s.dir+"/draws.jsonl", []byte(s.draws+record[:s.r.IntN(len(record))]), 0o644)
	if s.r.IntN(3) == 0 {
		os.Remove(s.dir + "/draws.jsonl")
		s.draws, s.lastDraw, s.lastSeal, s.lost = "", "none", "", nil
	}
}

// read returns the complete lines of a file.
func (s *soak) read(name string) string {
	text, _ := os.ReadFile(filepath.Join(s.dir, name))
	return string(text[:bytes.LastIndexByte(text, '\n')+1])
}

// checkFiles checks the chain file, and what the server added to the draws file.
func (s *soak) checkFiles() {
	oldChain, oldDraws := s.chain, s.draws
	s.chain, s.draws = s.read("chain.jsonl"), s.read("draws.jsonl")
	if !strings.HasPrefix(s.chain, oldChain) || !strings.HasPrefix(s.draws, oldDraws) {
		s.t.Fatal("the files no longer start with their old contents")
	}
	s.blocks = nil
	head := make([]string, 7)
	for line := range strings.Lines(s.chain) {
		b := blockLine.FindStringSubmatch(line)
		if b == nil || b[1] != strconv.Itoa(len(s.blocks)) || b[2] < head[2] || b[5] != head[4] ||
			b[4] != hashLines(b[1], b[2], b[3], b[5], b[6]) {
			s.t.Fatalf("chain file: no valid block after %q: %s", head[0], line)
		}
		head, s.blocks = b, append(s.blocks, b)
	}
	first := max(1, strings.Count(oldChain, "\n")) // the first block that the server may have added
	s.records, s.seals = map[int]*record{}, map[int]string{first: s.seal}
	number := strings.Count(oldDraws, "\n")
	for line := range strings.Lines(s.draws[len(oldDraws):]) {
		number++
		if err := s.checkRecord(line, number); err != nil {
			s.t.Fatalf("draws file: %v: %s", err, line)
		}
	}
	for i := first; i < len(s.blocks); i++ {
		expect(s.t, s.records[i] != nil, "block %d has no draw record", i)
	}
	verified, notAnnounced := run(s.t, s.dir, "verify"), ""
	if s.lost != nil {
		notAnnounced = `; \d+ draws? not announced \(lines? ` + strings.Join(s.lost, ", ") + `\)`
	}
	matches(s.t, verified, fmt.Sprintf("^0 ok: %d blocks?, head .*\nok: \\d+ draws?(?:; .*record)?%s(?:;(?s:.*))?\n%s$",
		len(s.blocks), notAnnounced, s.lastSeal))
}

// checkRecord repeats a draw, and compares it with its seal and its block, and with the block and the draw before.
func (s *soak) checkRecord(line string, number int) error {
	m := recordLine.FindStringSubmatch(line)
	if m == nil {
		return errors.New("not a record")
	}
	d := &record{lines: strings.Split(m[3], `","`), entries: map[string]entry{}, nextSeal: m[6]}
	var entries []entry
	total := 0
	for _, line := range d.lines[3:] {
		m := entryLine.FindStringSubmatch(line)
		if m == nil || d.entries[m[1]].stake > 0 {
			return fmt.Errorf("not an entry, or a second one: %q", line)
		}
		stake, _ := strconv.Atoi(m[2])
		e := entry{address: m[1], bpm: m[3], stake: stake, tickets: fmt.Sprintf("%d to %d", total+1, total+stake)}
		total += stake
		d.entries[e.address], entries = e, append(entries, e)
	}
	hash := hashLines(d.lines...)
	d.winner, d.outcome = pick(hash, entries)
	if d.winner.bpm == slashed {
		first := d.outcome
		eligible := slices.DeleteFunc(entries, func(e entry) bool { return e.bpm == slashed })
		d.winner, d.outcome = pick(hashLines(hash), eligible)
		d.outcome = first + " was slashed; redraw: " + d.outcome
	}
	index, _ := strconv.Atoi(m[1])
	secret, unsaved := d.lines[0], s.killed && index == len(s.blocks) // the server was killed before it saved the block
	if unsaved {
		s.lost = append(s.lost, strconv.Itoa(number))
	}
	block := append(s.blocks, make([]string, 7))[min(index, len(s.blocks))]
	switch {
	case !strings.HasSuffix(d.outcome, fmt.Sprintf("ticket %s of %s", m[4], m[5])):
		return fmt.Errorf("repeating it gives %q", d.outcome)
	case s.records[index] != nil || s.seals[index] != hashLines(d.lines[:3]...) || s.secrets[secret]:
		return errors.New("a second draw, not the secret that was sealed, or a secret that was used before")
	case index < 1 || d.lines[1] != s.blocks[index-1][4] || d.lines[2] != s.lastDraw:
		return fmt.Errorf("it does not name the block and the draw (%s) before it", s.lastDraw)
	case !unsaved && (block[3] != d.winner.bpm || block[4] != m[2] || block[6] != d.winner.address):
		return fmt.Errorf("the chain does not have this block of %v", d.winner)
	}
	s.records[index], s.seals[index+1], s.secrets[secret], s.lastDraw = d, d.nextSeal, true, hash
	s.lastSeal = fmt.Sprintf("if you noted this seal, no block or draw before draw %d has changed since:\n"+
		"draw %[1]d seal: %s\n", index, s.seals[index])
	return nil
}

// pick returns the entry that a hash picks, and its ticket, or no entry if there is none.
func pick(hash string, entries []entry) (winner entry, outcome string) {
	total := 0
	for _, e := range entries {
		total += e.stake
	}
	n, _ := new(big.Int).SetString(hash, 16)
	ticket := 1 + int(n.Mod(n, big.NewInt(int64(max(1, total)))).Int64())
	left := ticket
	for _, winner = range entries {
		if left -= winner.stake; left <= 0 {
			break
		}
	}
	return winner, fmt.Sprintf("ticket %d of %d", ticket, total)
}

// checkClients compares what the clients received with the files.
func (s *soak) checkClients() {
	owners := map[string]*soakClient{} // by address, or by "" one that may have proposed but did not get its address
	for i, c := range s.clients {
		err := s.checkClient(c)
		if c.address != "" && owners[c.address] != nil {
			err = errors.Join(err, errors.New("duplicate address"))
		}
		if err != nil {
			s.t.Fatalf("client %d typed %q: %v:\n%s", i, c.first+c.again, err, c.text)
		}
		if c.address != "" || c.cut {
			owners[c.address] = c
		}
	}
	for index, d := range s.records {
		for address, e := range d.entries {
			c := cmp.Or(owners[address], owners[""])
			expect(s.t, c != nil && (c.cut || c.proposals[index]), "block %d: nobody proposed %v", index, e)
		}
	}
}

// checkClient compares what a client received with the files.
func (s *soak) checkClient(c *soakClient) error {
	find := func(pattern string) [][]string { return regexp.MustCompile(pattern).FindAllStringSubmatch(c.text, -1) }
	for _, m := range find(joined) {
		index, _ := strconv.Atoi(m[2])
		if c.address = m[1]; s.seals[index] != m[3] {
			return fmt.Errorf("wrong seal: %q", m[0])
		}
	}
	announced, last := 0, 0 // the indices of the last announcement and the last proposal
	for _, m := range find(won + "(" + forged + ")?" + sealed) {
		index, _ := strconv.Atoi(m[2])
		d := s.records[index]
		if d == nil || index >= len(s.blocks) || announced > 0 && index != announced+1 {
			return fmt.Errorf("not in the files, or out of order: %q", m[0])
		}
		want := []string{d.winner.address, m[2], d.winner.bpm, d.outcome, d.lines[0]}
		if !slices.Equal(m[1:6], want) || (m[6] != "") != (m[1] == c.address) || m[8] != d.nextSeal {
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
	wasSlashed := strings.Contains(c.first+c.again, notABPM)
	for _, m := range find(proposed) {
		last, _ = strconv.Atoi(m[1])
		d := cmp.Or(s.records[last], &record{})
		e := d.entries[c.address]
		counted := e.tickets == m[3]+" to "+cmp.Or(m[4], m[3]) && (e.bpm == m[2] || e.bpm == slashed && wasSlashed)
		notDrawn := e.stake == 0 && (wasSlashed || s.killed && d.lines == nil)
		if c.proposals[last] || !counted && !notDrawn {
			return fmt.Errorf("a second proposal, or not what the draw has (%v): %q", e, m[0])
		}
		c.proposals[last] = true
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
	case c.cut || left:
	case !stopped && !strings.HasSuffix(c.first+c.again, "EOF"):
		return errors.New("disconnected without a reason")
	case announced < last || stopped && announced > 0 && announced < len(s.blocks)-1:
		return errors.New("a winner was not announced")
	}
	return nil
}
