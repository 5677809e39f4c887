package draw

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
)

func same(t *testing.T, what string, got, want any) {
	t.Helper()
	if got, want := fmt.Sprint(got), fmt.Sprint(want); got != want {
		t.Errorf("%s: got\n%s\nwant\n%s", what, got, want)
	}
}

func hash(s string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(s))) }

const (
	a199   = "a199cdea8894ecbe12c65b56fa395a64976f092c825e44bb5ba3a220c73793fa"
	c700   = "c700655083fd1a5a42a460566e477569e4a9273b9c9aa44f081a4b50fb600e71"
	secret = "KBZ3ZK5EUBYQZ2WUTMH3RYMSGE"
	most   = math.MaxInt64
)

// Two draws, byte by byte: the second one has a redraw.
func TestExamples(t *testing.T) {
	const seal = "607fbc17a7d3a1c85183c0488f5b2fcb7e10f75494c8813b6f2b43ccbed32427"
	d := &Draw{secret: secret}
	same(t, "seal", d.Seal(), seal)
	first, last := d.Add(Entry{Name: a199, Tickets: 100, Note: "72"})
	same(t, "tickets of a199", fmt.Sprint(first, last), "1 100")
	first, last = d.Add(Entry{Name: c700, Tickets: 25, Note: "68"})
	same(t, "tickets of c700", fmt.Sprint(first, last), "101 125")
	o := d.Outcome()
	same(t, "lines", o.Lines, secret+"\n"+a199+" 100 72\n"+c700+" 25 68\n")
	same(t, "D", hash(o.Lines), "49a896440ab40ef8049374b9bb86e601b408abc2a463cc84173fd1ae58b9347c")
	same(t, "outcome", fmt.Sprint(o, ", winner ", o.Winner), "ticket 21 of 125, winner 0")
	same(t, "record", string(NewRecord(1, "b1", o, d)), `{"Index":1,"Block":"b1","Lines":["`+secret+`","`+
		a199+` 100 72","`+c700+` 25 68"],"Ticket":21,"Total":125,"NextSeal":"`+seal+`"}`)

	d.secret = strings.Repeat("A", 26)
	d.Slash(0)
	same(t, "eligible", fmt.Sprint(d.Eligible()), "1 25")
	for range 2 { // with the same outcome
		o = d.Outcome()
		same(t, "lines", o.Lines, "AAAAAAAAAAAAAAAAAAAAAAAAAA\n"+a199+" 100 slashed\n"+c700+" 25 68\n")
		same(t, "D'", hash(hash(o.Lines)+"\n"), "c38035136f08f56d0c8366ea641553f89d4013eab0654d9cb6957909707cc89d")
		same(t, "outcome", fmt.Sprint(o, ", winner ", o.Winner),
			"ticket 59 of 125 was slashed; redraw: ticket 3 of 25, winner 1")
	}
	d.Slash(1)
	same(t, "winner if all are slashed", d.Outcome().Winner, -1)
}

// New never repeats a secret, and Again does. Results do not change when the draw does.
func TestNew(t *testing.T) {
	secrets := map[string]bool{}
	for range 1000 {
		d := New()
		secrets[d.Secret()] = true
		if len(d.Secret()) != 26 || d.Seal() != hash(d.Secret()+"\n") {
			t.Fatalf("the secret %s has the seal %s", d.Secret(), d.Seal())
		}
	}
	same(t, "secrets", len(secrets), 1000)
	d := New()
	same(t, "winner of no entries", d.Outcome().Winner, -1)
	first, last := d.Add(Entry{Name: "alice", Tickets: 5, Note: "72"})
	o := d.Outcome()
	d.Add(Entry{Name: "bob", Tickets: 7, Note: "68"})
	d.Slash(0)
	same(t, "tickets of alice", fmt.Sprint(first, last, o.Total), "1 5 5")
	again := d.Again()
	same(t, "lines of Again", again.Lines(), d.Secret()+"\n")
	same(t, "entries of Again", fmt.Sprint(again.Eligible()), "0 0")
}

// Parse accepts what Lines returns, and nothing else.
func TestParse(t *testing.T) {
	good := []string{secret, "alice 9223372036854775807 72", "bob 9223372036854775807 slashed", "carol 1 0"}
	d, err := Parse(good)
	if err != nil {
		t.Fatal(err)
	}
	same(t, "lines", d.Lines(), strings.Join(good, "\n")+"\n")
	same(t, "entries", d.Entries,
		"[{alice 9223372036854775807 72 false} {bob 9223372036854775807 slashed true} {carol 1 0 false}]")
	same(t, "eligible", fmt.Sprint(d.Eligible()), "2 9223372036854775808")
	for _, bad := range []string{"", "alice", "alice 5", "alice 5 ", "alice  5 72", " 5 72", "alice 5 72 ", "alice 5 72 1",
		"alice 0 72", "alice -5 72", "alice +5 72", "alice 05 72", "alice 5.0 72", "alice 0x5 72",
		"alice 9223372036854775808 72", "al\nice 5 72", "alice 5 7\n2", "alice 5 72\n", "alice 5 72\r", "al\tice 5 72",
		"al\u00efce 5 72", "alice 5 \x7f", "alice 5 \x00", "alice 5 " + strings.Repeat("7", 1<<20) + "\n"} {
		_, err := Parse([]string{secret, "bob 1 1", bad})
		same(t, "error", err, fmt.Sprintf("%.100q is not an entry (address, stake, BPM)", bad))
	}
	for _, bad := range [][]string{nil, {""}, {secret[1:]}, {secret + " "}, {secret + "\nbob 1 1"}, {"alice 5 72"}} {
		_, err := Parse(bad)
		same(t, "error", err, "the first line is not a secret of at least 26 characters")
	}
}

// Each entry holds its tickets, in order: every ticket of small draws, and the first and last tickets of a huge one.
func TestHolder(t *testing.T) {
	for lines, want := range map[string]string{ // the holders of tickets 1 to 11, of all and of those that can win
		"a 1 1":                               "0.......... 0..........",
		"a 3 1,b 1 1,c 2 1":                   "000122..... 000122.....",
		"a 2 slashed,b 3 1,c 1 slashed,d 4 1": "0011123333. 1113333....",
		"a 1 1,b 5 slashed":                   "011111..... 0..........",
		"a 1 slashed,b 7 1,c 2 1,d 1 1":       "01111111223 1111111223.",
	} {
		d, _ := Parse(strings.Split(secret+","+lines, ","))
		holders := func(all bool) (s string) {
			for ticket := range int64(11) {
				s += ".0123"[d.holder(big.NewInt(ticket+1), all)+1:][:1]
			}
			return s
		}
		same(t, "holders of "+lines, holders(true)+" "+holders(false), want)
	}
	d := &Draw{secret: secret}
	for i, want := range []string{"1 9223372036854775807", "9223372036854775808 18446744073709551614",
		"18446744073709551615 27670116110564327421", "27670116110564327422 27670116110564327422"} {
		first, last := d.Add(Entry{Name: "a", Tickets: []int64{most, most, most, 1}[i], Note: "1"})
		same(t, "tickets", fmt.Sprint(first, last), want)
		same(t, "holders of "+want, fmt.Sprint(d.holder(first, true), d.holder(last, true)), fmt.Sprint(i, i))
	}
	same(t, "outcome", d.Outcome(), "ticket 19261226826547566768 of 27670116110564327422")
	// 2^248 ends in 56, 2^255 in 68.
	for sum, want := range map[[32]byte]int{{}: 1, {31: 99}: 100, {31: 100}: 1, {0: 1}: 57, {0: 128}: 69} {
		same(t, fmt.Sprintf("ticket of %x", sum), ticket(sum, big.NewInt(100)), want)
	}
}

// A slashed entry costs no more than others.
func TestCostOfSlashed(t *testing.T) {
	d := &Draw{secret: secret}
	for i := range 200_000 {
		d.Add(Entry{Name: "a", Tickets: most, Note: "1"})
		d.Slash(i)
	}
	d.Add(Entry{Name: "b", Tickets: most, Note: "1"})
	allocations := testing.AllocsPerRun(1, func() { same(t, "winner", d.Outcome().Winner, 200_000) })
	same(t, "few allocations", allocations < 100, true)
}

// files are the draws file and the chain of a server that crashes now and then.
type files struct {
	lines  []string
	chain  []block // from the genesis block on
	starts int     // of the server
	next   *Draw
}

type block struct{ hash, name, note string }

func newFiles() *files { return (&files{chain: []block{{hash: hash("genesis")}}}).restart() }

func (f *files) restart() *files {
	f.starts++
	f.next = &Draw{secret: fmt.Sprintf("SECRET%020d", f.starts)}
	return f
}

// crash takes back the last block, but not its record, as if it had never been announced.
func (f *files) crash() *files {
	f.chain = f.chain[:len(f.chain)-1]
	return f.restart()
}

// round draws a block. Stakes are huge, so that no changed line gives the same ticket. A negative one was slashed.
func (f *files) round(stakes ...int64) *files {
	d := f.next
	for i, stake := range append(stakes, most) {
		d.Add(Entry{Name: fmt.Sprintf("%c%d", 'a'+i, f.starts), Tickets: max(stake, -stake), Note: fmt.Sprint(70 + i)})
		if stake < 0 {
			d.Slash(i)
		}
	}
	f.next = &Draw{secret: hash(d.secret)[:26]}
	o := d.Outcome()
	f.lines = append(f.lines, string(NewRecord(len(f.chain), hash(o.Lines), o, f.next)))
	f.chain = append(f.chain, block{hash: hash(o.Lines), name: d.Entries[o.Winner].Name, note: d.Entries[o.Winner].Note})
	return f
}

// verify returns the summary of a draws file, or its first error.
func (f *files) verify(draws string) string {
	r := NewRecords(strings.NewReader(draws))
	for i, b := range f.chain {
		r.CheckBlock(i, b.hash, b.name, b.note)
	}
	head := len(f.chain) - 1
	if err := r.CheckEnd(head); err != nil {
		return err.Error()
	}
	return r.Summary(head)
}

// A block may have no record. A record that is not of a block in the chain must be the last one for its index.
func TestCheckBlock(t *testing.T) {
	plain := newFiles().round().round().round(5).round(most, 5)
	killed := newFiles().round().round().round().round().crash()
	crashed := newFiles().round().round().crash().round().round().crash().round().crash() // for blocks 1, 2, 2, 3, 3
	restarted := newFiles().round().restart().round().round().crash().round()
	truncated := newFiles().round().round().round().round().crash().crash()
	lost := newFiles().round().crash().round().round().round().crash().round() // for blocks 1, 1, 2, 3, 3
	otherBPM, otherWinner := newFiles().round().round(), newFiles().round().round()
	otherBPM.chain[2].note, otherWinner.chain[2].name = "1", "b1"
	first, badJSON := (&files{}).restart().round(), newFiles().round().round()
	badJSON.lines[0] = strings.Replace(badJSON.lines[1], `"Index":2`, `"index":7`, 1)
	otherHash := newFiles().round().round()
	otherHash.lines[1] = strings.Replace(otherHash.lines[1], otherHash.chain[2].hash, otherHash.chain[1].hash, 1)
	const notInChain = "its block is not in the chain, or out of order"
	for _, c := range []struct {
		files *files
		lines string // of the draws file, numbered from 1
		want  string
	}{
		{plain, "1234", "4 draws"},
		{plain, "", "0 draws; 4 blocks without a draw record"},
		{plain, "24", "2 draws; 2 blocks without a draw record"},
		{plain, "134", "3 draws; 1 block without a draw record"},
		{plain, "11234", "line 2: duplicate record of block 1"},
		{plain, "12344", "line 5: duplicate record of block 4"},
		{plain, "1324", "line 3: out of order: it follows the record of block 3"},
		{plain, "1243", "line 4: out of order: it follows the record of block 4"},
		{killed, "1234", "3 draws"}, // the last record has the same winner as the head
		{killed, "124", "2 draws; 1 block without a draw record"},
		{killed, "1243", "line 4: " + notInChain},
		{crashed, "12345", "2 draws; 2 new seals, as after a restart (lines 3, 5)"},
		{crashed, "14", "1 draw; 1 block without a draw record"},
		{crashed, "125", "line 2: " + notInChain},
		{crashed, "132", "line 3: duplicate record of block 2"},
		{truncated, "123", "2 draws"},
		{truncated, "1234", "line 4: " + notInChain},
		{restarted, "123", "2 draws; 1 block without a draw record; 1 new seal, as after a restart (line 2)"},
		{restarted, "1234", "3 draws; 2 new seals, as after a restart (lines 2, 4)"},
		{lost, "12345", "3 draws; 1 new seal, as after a restart (line 5)"},
		{lost, "135", "line 1: " + notInChain},
		{lost, "1", "0 draws; 3 blocks without a draw record"},
		{otherBPM, "12", "line 2: it does not match block 2 of the chain (hash, winner or BPM)"},
		{otherWinner, "12", "line 2: it does not match block 2 of the chain (hash, winner or BPM)"},
		{otherHash, "12", "line 2: its hash is that of block 1"},
		{first, "1", "line 1: block 0 is never drawn"},
		{badJSON, "12", "line 1: not canonical JSON: want " + strings.Replace(badJSON.lines[0], "index", "Index", 1)[:200]},
	} {
		draws := ""
		for _, number := range c.lines {
			draws += c.files.lines[number-'1'] + "\n"
		}
		same(t, "lines "+c.lines+" of\n"+strings.Join(c.files.lines, "\n"), c.files.verify(draws), c.want)
	}
}

// Every change of a file is noticed, except in what does not count. A changed field is reported with its line.
func TestTampering(t *testing.T) {
	f := newFiles().round(most, -most).round(most).crash().round(1<<62).round(5).round(most).round(most, 5).round()
	f.lines = append(f.lines[:3], f.lines[5]) // blocks 3, 4 and 6 have no record
	draws := strings.Join(f.lines, "\n") + "\n"
	const good = "3 draws; 3 blocks without a draw record; 1 new seal, as after a restart (line 3)"
	same(t, "the original", f.verify(draws), good)
	var changes []func(r *Record)
	for i, b := range f.chain {
		changes = append(changes, func(r *Record) { r.Block = b.hash }, func(r *Record) { r.Index = i },
			func(r *Record) { r.Index = i + len(f.chain) })
	}
	for i := range 2 {
		changes = append(changes, func(r *Record) { r.Lines = slices.Insert(r.Lines, i, r.Lines[i]) },
			func(r *Record) { r.Lines = slices.Delete(r.Lines, i, i+1) },
			func(r *Record) { r.Lines[0], r.Lines[i] = r.Lines[i], r.Lines[0] })
	}
	for _, wrong := range []string{"", "1", "-1", "1e3", strings.Repeat("9", 1000), strings.Repeat("A", 64)} {
		changes = append(changes, func(r *Record) { r.Ticket = json.Number(wrong) },
			func(r *Record) { r.Total = json.Number(wrong) }, func(r *Record) { r.NextSeal = wrong })
	}
	harmless := draws // with stars for the bytes that do not count
	for n, line := range f.lines {
		var record Record
		json.Unmarshal([]byte(line), &record)
		if n > 0 { // the draw with this seal has no record
			harmless = strings.Replace(harmless, record.NextSeal, strings.Repeat("*", 64), 1)
		}
		if n == 1 { // the draw was never announced
			harmless = strings.Replace(harmless, record.Block, strings.Repeat("*", 64), 1)
			continue
		}
		for _, change := range changes {
			r := record
			r.Lines = slices.Clone(r.Lines)
			change(&r)
			changed, _ := json.Marshal(r)
			got := f.verify(strings.Replace(draws, line, string(changed), 1))
			if string(changed) != line && !strings.HasPrefix(got, fmt.Sprintf("line %d: ", n+1)) {
				t.Errorf("line %d changed to\n%s\ngives %s", n+1, changed, got)
			}
		}
	}
	for bit := range 8 * len(draws) {
		at, changed := bit/8, []byte(draws)
		changed[at] ^= 1 << (bit % 8)
		if harmless[at] != '*' && f.verify(string(changed)) == good {
			t.Fatalf("byte %d can be changed to %q: %s", at, changed[at], changed)
		}
	}
}

// A record may have as many proposals as a round.
func TestLongRecord(t *testing.T) {
	d := New()
	for range 20_000 {
		d.Add(Entry{Name: a199, Tickets: most, Note: "72"})
	}
	r := NewRecords(strings.NewReader(string(NewRecord(1, "", d.Outcome(), d)) + "\n"))
	same(t, "scan", fmt.Sprint(r.Scan(), r.Err()), "true <nil>")
	same(t, "outcome", r.Outcome, d.Outcome())
}

// Fairness counts announced draws, and those names that could win them.
func TestFairness(t *testing.T) {
	fairness := func(f *files) string {
		var b strings.Builder
		if err := tabulate(&b, strings.NewReader(strings.Join(append(f.lines, ""), "\n"))); err != nil {
			return err.Error()
		}
		table, _, _ := strings.Cut(b.String(), "\n\nz: ")
		return table
	}
	f := newFiles()
	same(t, "no draws", fairness(f), "no draws yet")
	f.lines = []string{`{"Index":1,"Block":"","Lines":["` + secret + `","a 5 slashed"],"Ticket":1,"Total":5,` +
		`"NextSeal":""}`}
	same(t, "all slashed", fairness(f), "line 1: every entry was slashed, so none can have won")
	same(t, "reading fails", tabulate(io.Discard, iotest.ErrReader(io.ErrUnexpectedEOF)), "line 1: unexpected EOF")
	name := filepath.Join(t.TempDir(), "draws")
	same(t, "no file", errors.Is(Fairness(io.Discard, name), os.ErrNotExist), true)
	os.WriteFile(name, nil, 0o644)
	same(t, "an empty file", Fairness(io.Discard, name), name+": no draws yet")
	heading, _, _ := strings.Cut(fairness(newFiles().round()), ". ")
	same(t, "the heading of one draw", heading, "1 round, 1 validator")
	f = newFiles().round(most, most).round(most, -most).round(-most, most, most/4)
	f.round(most, most).crash().round(most).round()
	same(t, "6 draws of 5 blocks", fairness(f), `5 rounds, 6 validators. Bar (=): wins. Mark (|): expected wins.

validator     rounds  expected    wins      z
a2                 2       1.5       1   -1.0  ====================          |
c1                 3       0.9       1   +0.1  ==================|=
a1                 2       0.8       1   +0.2  ================|===
b1                 2       0.8       1   +0.3  ===============|====
b2                 1       0.5       1   +1.0  ==========|=========
d1                 1       0.4       0   -0.9          |`)
}

// The table lists 20 names. The legend counts all of those with enough rounds to tell.
func TestFairnessTable(t *testing.T) {
	all := []tally{
		{name: strings.Repeat("x", 64), rounds: 1_000_000, wins: 1_000_000, expected: 1_000_000}, // always alone
		{name: "lucky", rounds: 1_000_000, wins: 15},
	}
	for i := range 22 { // z from -2.0 to +2.2
		all = append(all, tally{name: fmt.Sprint("v", i), rounds: 1000, wins: 80 + i, expected: 90, variance: 25})
	}
	all = append(all, tally{name: "poor", rounds: 1000, wins: 85, expected: 70, variance: 25},
		tally{name: "poorer", rounds: 1000, wins: 60, expected: 70, variance: 4}, // z -5.0
		tally{name: "rare", rounds: 1000, wins: 60, expected: 70, variance: 3})
	table := func(all []tally) string {
		var b strings.Builder
		show(&b, 1_000_000, all)
		lines := strings.Split(b.String(), "\n")
		return strings.Join(append(lines[:5], lines[22:]...), "\n")
	}
	same(t, "27 validators", table(all), `1000000 rounds, 27 validators. Bar (=): wins. Mark (|): expected wins.

validator     rounds  expected    wins      z
xxxxxxxxxxxx 1000000 1000000.0 1000000   +0.0  ==============================|
lucky        1000000       0.0      15 +474341.6  |
v17             1000      90.0      97   +1.4  |
7 others        7000     570.0     603   +2.9  |

z: wins minus expected wins, in standard deviations. In a fair lottery about 1
validator in 22 is beyond 2 (+ or -), and 1 in 370 beyond 3. Of the 24 with
enough rounds to tell (deviation of 2 wins or more): 5 beyond 2, 2 beyond 3.
`)
	if got := table(all[:21]); !strings.Contains(got, "\n1 other ") {
		t.Errorf("21 validators: got\n%s", got)
	}
}

// FuzzRecords checks that no file makes reading panic, and that what Parse accepts survives a record.
func FuzzRecords(f *testing.F) {
	good := newFiles().round(most, -most).round(5).crash().round()
	f.Add(strings.Join(good.lines, "\n")+"\n", secret+"\nalice 5 72\nbob 7 slashed")
	f.Add(`{"Index":1,"Block":"","Lines":null,"Ticket":null,"Total":null,"NextSeal":""}`+"\nnull\n\n", secret)
	f.Fuzz(func(t *testing.T, file, lines string) {
		good.verify(file)
		tabulate(io.Discard, strings.NewReader(file))
		d, err := Parse(strings.Split(lines, "\n"))
		if err != nil {
			return
		}
		same(t, "lines", d.Lines(), lines+"\n")
		if o := d.Outcome(); o.Winner >= 0 {
			r := NewRecords(strings.NewReader(string(NewRecord(1, "", o, d)) + "\n"))
			same(t, "scan", fmt.Sprint(r.Scan(), r.Outcome, r.Err()), fmt.Sprint(true, o, nil))
		}
	})
}
