//go:build linux

package e2e

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
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
	t                  *testing.T
	r                  *rand.Rand
	dir                string
	chain, draws       string          // the complete lines of the files when no server runs
	secrets, addresses map[string]bool // of all draws and validators
	killed             bool
	clients            []soakClient
	blocks             []string       // the lines of the chain file
	records            map[int]record // that the server added to the draws file, by index
	seals              map[int]string // that the server published, by index
}

// soakClient is what one connection typed (see react) and received.
type soakClient struct {
	typed, text string
	cut         bool // the server ended before it accepted the connection
}

// record is a line of the draws file.
type record struct {
	Index         int
	Lines         []string
	Ticket, Total json.Number
	NextSeal      string
}

// secret returns the secret of the draw.
func (d record) secret() string { return d.Lines[0] }

// TestSoak kills or stops servers at random moments, and tears the files between. After each server it verifies the
// files, and compares them with what the clients received.
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
	s := &soak{t: t, r: rand.New(rand.NewPCG(seed, 0)), dir: dir, secrets: map[string]bool{}, addresses: map[string]bool{}}
	end := time.Now().Add(*soakTime)
	for n := 0; !t.Failed() && (n < 2 || time.Now().Before(end)); n++ {
		s.killed = n%2 == 1
		s.tear()
		s.run()
		s.checkFiles()
		for i, c := range s.clients {
			if err := s.checkClient(c); err != nil {
				t.Fatalf("client %d typed %q: %v:\n%s", i, c.typed, err, c.text)
			}
		}
	}
	expect(t, len(s.blocks) > 1, "no block was forged")
	t.Logf("seed %d: %d blocks", seed, len(s.blocks))
}

// run runs a server with some more clients than it has room for, and ends it.
func (s *soak) run() {
	p := start(s.t, s.dir, "ROUND=20ms BROADCAST=50ms BROADCAST_BLOCKS=4 MAX_CLIENTS=20")
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
					expect(s.t, ctx.Err() != nil, "%v", err)
					return
				}
				conn.SetDeadline(time.Now().Add(timeout))
				numbers := strings.NewReplacer("STAKE", strconv.Itoa(1+r.IntN(300)), "BPM", strconv.Itoa(60+r.IntN(40)))
				script := scripts[r.IntN(len(scripts))]
				first, again := numbers.Replace(script[0]), numbers.Replace(script[1])
				text, err := react(conn.(*net.TCPConn), first, again)
				expect(s.t, !errors.Is(err, os.ErrDeadlineExceeded), "%q was not answered:\n%s", script, text)
				cut := text == "" && ctx.Err() != nil
				mu.Lock()
				s.clients = append(s.clients, soakClient{typed: first + again, text: text, cut: cut})
				mu.Unlock()
			}
		})
	}
	<-time.After(time.Duration(100+s.r.IntN(800)) * time.Millisecond)
	signal := []os.Signal{os.Interrupt, syscall.SIGTERM}[s.r.IntN(2)]
	if s.killed {
		signal = os.Kill
	}
	stop()
	p.Process.Signal(signal)
	all.Wait()
	code := p.end()
	expect(s.t, code == 0 || s.killed && code == -1, "after %v: exit status %d", signal, code)
	warnings := regexp.MustCompile("(?m)^.*(partial last line|missing newline|full|room again|more than a second).*\n")
	unexpected := warnings.ReplaceAllString(p.stderr.text, "")
	expect(s.t, unexpected == "", "unexpected in the log: %s", unexpected)
	seal := regexp.MustCompile(sealed).FindStringSubmatch(p.text)
	s.seals = map[int]string{number(seal[1]): seal[2]}
}

// tear does to the files what may happen while no server runs: a partial last line, no last newline, no draws file.
func (s *soak) tear() {
	const part = `{"Index":0,"Times`
	chain := []string{s.chain, s.chain + part, strings.TrimSuffix(s.chain, "\n")}[s.r.IntN(3)]
	os.WriteFile(s.dir+"/chain.jsonl", []byte(chain), 0o644)
	os.WriteFile(s.dir+"/draws.jsonl", []byte(s.draws+part[:s.r.IntN(len(part))]), 0o644)
	if s.r.IntN(3) == 0 {
		os.Remove(s.dir + "/draws.jsonl")
		s.draws = ""
	}
}

// read returns the complete lines of a file.
func (s *soak) read(name string) string {
	text, _ := os.ReadFile(filepath.Join(s.dir, name))
	return string(text[:bytes.LastIndexByte(text, '\n')+1])
}

// checkFiles verifies the files, and checks what the server added to them.
func (s *soak) checkFiles() {
	oldChain, oldDraws := s.chain, s.draws
	s.chain, s.draws = s.read("chain.jsonl"), s.read("draws.jsonl")
	if !strings.HasPrefix(s.chain, oldChain) || !strings.HasPrefix(s.draws, oldDraws) {
		s.t.Fatal("the files no longer start with their old contents")
	}
	s.blocks = slices.Collect(strings.Lines(s.chain))
	matches(s.t, run(s.t, s.dir, "verify"), fmt.Sprintf("^0 ok: %d blocks?, head .*\nok: .*\n$", len(s.blocks)))
	s.records = map[int]record{}
	for line := range strings.Lines(s.draws[len(oldDraws):]) {
		var d record
		if json.Unmarshal([]byte(line), &d) != nil || d.Lines == nil {
			s.t.Fatalf("not a draw record: %s", line)
		}
		if s.seals[d.Index] != hashLines(d.secret()) || s.secrets[d.secret()] {
			s.t.Fatalf("a secret that was not sealed, or was used before: %s", line)
		}
		s.records[d.Index], s.seals[d.Index+1], s.secrets[d.secret()] = d, d.NextSeal, true
	}
	added := len(s.blocks) - max(1, strings.Count(oldChain, "\n")) // without the genesis block
	// A server that is killed may have saved a record, and not yet its block.
	expect(s.t, len(s.records) == added || s.killed && len(s.records) == added+1,
		"the server added %d blocks and %d draw records", added, len(s.records))
}

// checkClient compares what a client received with the files.
func (s *soak) checkClient(c soakClient) error {
	find := func(pattern string) [][]string { return regexp.MustCompile(pattern).FindAllStringSubmatch(c.text, -1) }
	address := ""
	for _, m := range find(joined) {
		if address = m[1]; s.addresses[address] || s.seals[number(m[2])] != m[3] {
			return fmt.Errorf("not a new address, or not the seal: %q", m[0])
		}
		s.addresses[address] = true
	}
	announced := 0 // the index of the last announcement
	for _, m := range find(won + "(" + forged + ")?" + sealed) {
		index := number(m[2])
		d, drawn := s.records[index]
		if !drawn || index >= len(s.blocks) || announced > 0 && index != announced+1 {
			return fmt.Errorf("not in the files, or out of order: %q", m[0])
		}
		announced = index
		block := regexp.MustCompile(fmt.Sprintf(`^\{"Index":%s,.*"BPM":%s,.*"Validator":"%s"\}`, m[2], m[3], m[1]))
		outcome := fmt.Sprintf("ticket %s of %s", d.Ticket, d.Total)
		isForger := m[6] != ""
		if !block.MatchString(s.blocks[index]) || !strings.HasSuffix(m[4], outcome) || m[5] != d.secret() ||
			isForger != (m[1] == address) || m[8] != d.NextSeal {
			return fmt.Errorf("not what was drawn: %q", m[0])
		}
	}
	wasSlashed := strings.Contains(c.typed, notABPM)
	proposal := 0 // the index of the last proposal
	for _, m := range find(proposed) {
		if number(m[1]) <= proposal {
			return fmt.Errorf("a second proposal: %q", m[0])
		}
		proposal = number(m[1])
		d, drawn := s.records[proposal]
		first, last := m[3], cmp.Or(m[4], m[3])
		entry := fmt.Sprintf("%s %d ", address, number(last)-number(first)+1)
		isEntry := slices.Contains(d.Lines, entry+m[2]) || wasSlashed && slices.Contains(d.Lines, entry+"slashed")
		isVoid := wasSlashed && !strings.Contains(strings.Join(d.Lines, " "), address)
		if !isEntry && !isVoid && (drawn || !s.killed) {
			return fmt.Errorf("not in the draw: %q", m[0])
		}
	}
	for _, m := range find(`\n\[(.*)\]\n`) {
		if !strings.Contains(strings.ReplaceAll(s.chain, "\n", ","), m[1]+",") {
			return fmt.Errorf("not the chain: %q", m[0])
		}
	}
	left := find("(?:"+goodbye+"|"+isSlashed+"|"+tooMany+"|"+serverFull+")$") != nil
	stopped := find(shutdown+"$") != nil
	switch {
	case left || s.killed || c.cut:
	case !stopped && !strings.HasSuffix(c.typed, "EOF"):
		return errors.New("disconnected without a reason")
	case announced < proposal || stopped && announced > 0 && announced < len(s.blocks)-1:
		return errors.New("a winner was not announced")
	}
	return nil
}

// number returns the value of a decimal number.
func number(digits string) int {
	n, _ := strconv.Atoi(digits)
	return n
}
