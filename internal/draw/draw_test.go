package draw

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"math/big"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
)

func same(t *testing.T, what string, got, want any) {
	t.Helper()
	if got, want := fmt.Sprint(got), fmt.Sprint(want); got != want {
		t.Errorf("%s:\n%s\nwant:\n%s", what, got, want)
	}
}

func hash(s string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(s))) }

// outOf is the ticket of that total to which a hash points.
func outOf(hash string, total *big.Int) *big.Int {
	n, _ := new(big.Int).SetString(hash, 16)
	return n.Add(n.Mod(n, total), big.NewInt(1))
}

const (
	a199   = "a199cdea8894ecbe12c65b56fa395a64976f092c825e44bb5ba3a220c73793fa"
	c700   = "c700655083fd1a5a42a460566e477569e4a9273b9c9aa44f081a4b50fb600e71"
	secret = "KBZ3ZK5EUBYQZ2WUTMH3RYMSGE"
	most   = math.MaxInt64
)

// The examples of the contract, byte by byte.
func TestExamples(t *testing.T) {
	const seal = "607fbc17a7d3a1c85183c0488f5b2fcb7e10f75494c8813b6f2b43ccbed32427"
	d := &Draw{secret: secret}
	same(t, "seal", d.Seal(), seal)
	same(t, "tickets of a199", fmt.Sprint(d.Add(Entry{a199, 100, "72", false})), "1 100")
	same(t, "tickets of c700", fmt.Sprint(d.Add(Entry{c700, 25, "68", false})), "101 125")
	lines := d.Lines()
	same(t, "lines", lines, secret+"\n"+a199+" 100 72\n"+c700+" 25 68\n")
	same(t, "D", hash(lines), "49a896440ab40ef8049374b9bb86e601b408abc2a463cc84173fd1ae58b9347c")
	o := d.Outcome(lines)
	same(t, "outcome and winner", fmt.Sprint(o, o.Winner), "ticket 21 of 125 0")
	record := NewRecord(1, "b1", lines, o, d)
	same(t, "record", string(record), `{"Index":1,"Block":"b1","Lines":["`+secret+`","`+a199+` 100 72","`+c700+` 25 68"],`+
		`"Ticket":21,"Total":125,"NextSeal":"`+seal+`"}`)

	d.secret = strings.Repeat("A", 26)
	d.Slash(0)
	lines = d.Lines()
	same(t, "lines", lines, "AAAAAAAAAAAAAAAAAAAAAAAAAA\n"+a199+" 100 slashed\n"+c700+" 25 68\n")
	same(t, "D'", hash(hash(lines)+"\n"), "c38035136f08f56d0c8366ea641553f89d4013eab0654d9cb6957909707cc89d")
	for range 2 {
		o = d.Outcome(lines)
		same(t, "outcome and winner", fmt.Sprint(o, o.Winner), "ticket 59 of 125 was slashed, again: ticket 3 of 25 1")
	}
	same(t, "who can win", fmt.Sprint(d.Eligible()), "1 25")
	d.Slash(1)
	same(t, "winner if all are slashed", d.Outcome(d.Lines()).Winner, -1)
}

// Secrets are new, except after a draw without a winner; and what was told does not change later.
func TestNew(t *testing.T) {
	d, other := New(), New()
	if len(d.Secret()) != 26 || d.Secret() == other.Secret() || d.Seal() != hash(d.Secret()+"\n") {
		t.Errorf("secrets %s and %s; the first has the seal %s", d.Secret(), other.Secret(), d.Seal())
	}
	same(t, "winner of no entries", d.Outcome(d.Lines()).Winner, -1)
	first, last := d.Add(Entry{"alice", 5, "72", false})
	o := d.Outcome(d.Lines())
	d.Add(Entry{"bob", 7, "68", false})
	d.Slash(0)
	same(t, "alice's tickets and their total", fmt.Sprint(first, last, o.Total), "1 5 5")
	again := d.Again()
	same(t, "again", fmt.Sprint(again.Eligible())+again.Lines()+again.Seal(), "0 0"+d.Secret()+"\n"+d.Seal())
}

// Parse takes what Lines gives, and nothing else.
func TestParse(t *testing.T) {
	good := []string{secret, "alice 9223372036854775807 72", "bob 9223372036854775807 slashed", "carol 1 0"}
	d, err := Parse(good)
	if err != nil {
		t.Fatal(err)
	}
	same(t, "lines", d.Lines(), strings.Join(good, "\n")+"\n")
	same(t, "entries", d.Entries, "[{alice 9223372036854775807 72 false} {bob 9223372036854775807 slashed true} {carol 1 0 false}]")
	same(t, "who can win", fmt.Sprint(d.Eligible()), "2 9223372036854775808")
	for _, bad := range []string{"", "alice", "alice 5", "alice 5 ", "alice  5 72", " 5 72", "alice 5 72 ", "alice 5 72 1",
		"alice 0 72", "alice -5 72", "alice +5 72", "alice 05 72", "alice 5.0 72", "alice 0x5 72", "alice 9223372036854775808 72",
		"al\nice 5 72", "alice 5 7\n2", "alice 5 72\n", "alice 5 72\r", "al\tice 5 72", "al\u00efce 5 72", "alice 5 \x7f",
		"alice 5 \x00", "alice 5 " + strings.Repeat("7", 1<<20) + "\n"} {
		_, err := Parse([]string{secret, "bob 1 1", bad})
		same(t, "error", err, fmt.Sprintf("%.100q is no entry of a draw", bad))
	}
	for _, bad := range [][]string{nil, {""}, {secret[1:]}, {secret + " "}, {secret + "\nbob 1 1"}, {"alice 5 72"}} {
		_, err := Parse(bad)
		same(t, "error", err, "its lines do not begin with a secret of 26 or more characters")
	}
}

// Each entry holds as many tickets as it has, in order: every ticket of small draws, and the edges of a huge one.
func TestHolder(t *testing.T) {
	for lines, want := range map[string]string{ // who holds the tickets from 1 to 11, of all and of those who can win
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
		same(t, "holders of the tickets of "+lines, holders(true)+" "+holders(false), want)
	}
	d := &Draw{secret: secret}
	for i, want := range []string{"1 9223372036854775807", "9223372036854775808 18446744073709551614",
		"18446744073709551615 27670116110564327421", "27670116110564327422 27670116110564327422"} {
		first, last := d.Add(Entry{"a", []int64{most, most, most, 1}[i], "1", false})
		same(t, "tickets", fmt.Sprint(first, last), want)
		same(t, "their holders", fmt.Sprint(d.holder(first, true), d.holder(last, true)), fmt.Sprint(i, i))
	}
	_, total := d.Eligible()
	same(t, "ticket", d.Outcome(d.Lines()).Ticket, outOf(hash(d.Lines()), total))
	// 2^248 ends in 56, 2^255 in 68.
	for sum, want := range map[[32]byte]int{{}: 1, {31: 99}: 100, {31: 100}: 1, {0: 1}: 57, {0: 128}: 69} {
		same(t, fmt.Sprintf("%x as a ticket of 100", sum), ticket(sum, big.NewInt(100)), want)
	}
}

// Slashed entries cost no more than others, however many they are and whatever they have staked.
func TestSlashedCostNothing(t *testing.T) {
	d := &Draw{secret: secret}
	for i := range 200_000 {
		d.Add(Entry{"a", most, "1", false})
		d.Slash(i)
	}
	d.Add(Entry{"b", most, "1", false})
	lines := d.Lines()
	same(t, "ticket", d.Outcome(lines).Ticket, outOf(hash(hash(lines)+"\n"), big.NewInt(most)))
	allocations := testing.AllocsPerRun(1, func() { same(t, "winner", d.Outcome(lines).Winner, 200_000) })
	same(t, "few allocations", allocations < 100, true)
}

// files is a draws file and its chain in the making, by a server that is killed now and then.
type files struct {
	lines  []string
	chain  []block // from genesis on
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

// crash takes back the last block, which was not announced.
func (f *files) crash() *files {
	f.chain = f.chain[:len(f.chain)-1]
	return f.restart()
}

// round draws a block, among stakes so large that no changed line gives the right ticket by chance. A negative one was slashed.
func (f *files) round(stakes ...int64) *files {
	d := f.next
	for i, stake := range append(stakes, most) {
		d.Add(Entry{fmt.Sprintf("%c%d", 'a'+i, f.starts), max(stake, -stake), fmt.Sprint(70 + i), false})
		if stake < 0 {
			d.Slash(i)
		}
	}
	f.next = &Draw{secret: hash(d.secret)[:26]}
	lines := d.Lines()
	o := d.Outcome(lines)
	line := NewRecord(len(f.chain), hash(lines), lines, o, f.next)
	f.lines = append(f.lines, string(line))
	f.chain = append(f.chain, block{hash(lines), d.Entries[o.Winner].Name, d.Entries[o.Winner].Note})
	return f
}

// verify is what verify says of a draws file: the fault, or the summary.
func (f *files) verify(draws string) string {
	r := NewRecords(strings.NewReader(draws))
	r.Scan()
	for i, b := range f.chain {
		r.CheckBlock(i, b.hash, b.name, b.note)
	}
	head := len(f.chain) - 1
	if err := r.CheckEnd(head); err != nil {
		return err.Error()
	}
	return r.Summary(head)
}

// Records may be missing, or without a block in the chain if the last for their index; all else is a fault.
func TestMatch(t *testing.T) {
	plain := newFiles().round().round().round(5).round(most, 5)
	killed := newFiles().round().round().round().round().crash()
	crashed := newFiles().round().round().crash().round().round().crash().round().crash() // for blocks 1, 2, 2, 3, 3
	restarted := newFiles().round().restart().round().round().crash().round()
	otherBPM, otherWinner := newFiles().round().round(), newFiles().round().round()
	otherBPM.chain[2].note, otherWinner.chain[2].name = "1", "b1"
	first, spoiled := (&files{}).restart().round(), newFiles().round().round()
	spoiled.lines[0] = strings.Replace(spoiled.lines[1], `"Index":2`, `"index":7`, 1)
	for _, c := range []struct {
		files *files
		lines string // in this order, numbered from 1
		want  string
	}{
		{plain, "1234", "4 draws"},
		{plain, "", "0 draws; 4 blocks have no record of their draw"},
		{plain, "24", "2 draws; 2 blocks have no record of their draw"},
		{plain, "11234", "line 2: block 1 has a record already"},
		{plain, "12344", "line 5: block 4 has a record already"},
		{plain, "1324", "line 3: it comes behind that of block 3"},
		{plain, "1243", "line 4: its block is not in the chain, or not in that order"},
		{killed, "1234", "3 draws"}, // the last one has the winner of the head
		{killed, "1243", "line 4: its block is not in the chain, or not in that order"},
		{crashed, "12345", "2 draws; the seal was made anew 2 times, as after a restart (lines 3, 5)"},
		{crashed, "14", "1 draws; 1 blocks have no record of their draw"},
		{crashed, "125", "line 2: its block is not in the chain, or not in that order"},
		{crashed, "132", "line 3: block 2 has a record already"},
		{restarted, "1234", "3 draws; the seal was made anew 2 times, as after a restart (lines 2, 4)"},
		{otherBPM, "12", "line 2: block 2 of the chain has another hash, winner or BPM"},
		{otherWinner, "12", "line 2: block 2 of the chain has another hash, winner or BPM"},
		{first, "1", "line 1: block 0 is not drawn"},
		{spoiled, "12", "line 1: bad JSON: it should be " + strings.Replace(spoiled.lines[0], "index", "Index", 1)[:200]},
	} {
		draws := ""
		for _, number := range c.lines {
			draws += c.files.lines[number-'1'] + "\n"
		}
		same(t, "lines "+c.lines+" of\n"+strings.Join(c.files.lines, "\n"), c.files.verify(draws), c.want)
	}
}

// Whatever is changed in a file is found, but in what counts for nothing; and a changed field on its line.
func TestTampering(t *testing.T) {
	f := newFiles().round(most, -most).round(most).crash().round(1<<62).round(5).round(most).round(most, 5).round()
	f.lines = append(f.lines[:3], f.lines[5]) // of blocks 3, 4 and 6 there is no record
	draws := strings.Join(f.lines, "\n") + "\n"
	const good = "3 draws; 3 blocks have no record of their draw; the seal was made anew 1 times, as after a restart (lines 3)"
	same(t, "as it was", f.verify(draws), good)
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
	harmless := draws
	for n, line := range f.lines {
		var record Record
		json.Unmarshal([]byte(line), &record)
		if n > 0 { // there is no record of the draw that it seals
			harmless = strings.Replace(harmless, record.NextSeal, strings.Repeat("*", 64), 1)
		}
		if n == 1 { // it was not announced
			harmless = strings.Replace(harmless, record.Block, strings.Repeat("*", 64), 1)
			continue
		}
		for _, change := range changes {
			r := record
			r.Lines = slices.Clone(r.Lines)
			change(&r)
			changed, _ := json.Marshal(r)
			says := f.verify(strings.Replace(draws, line, string(changed), 1))
			if string(changed) != line && !strings.HasPrefix(says, fmt.Sprintf("line %d: ", n+1)) {
				t.Errorf("of line %d as\n%s\nit says %s", n+1, changed, says)
			}
		}
	}
	for bit := range 8 * len(draws) {
		at, changed := bit/8, []byte(draws)
		changed[at] ^= 1 << (bit % 8)
		if harmless[at] != '*' && f.verify(string(changed)) == good {
			t.Fatalf("nobody sees that byte %d is %q now: %s", at, changed[at], changed)
		}
	}
}

// What fairness shows: neither a draw that was not announced counts, nor who was slashed.
func TestFairness(t *testing.T) {
	fairness := func(f *files) string {
		var b strings.Builder
		if err := tabulate(&b, strings.NewReader(strings.Join(append(f.lines, ""), "\n"))); err != nil {
			return err.Error()
		}
		table, _, _ := strings.Cut(b.String(), "\n\noff: ")
		return table
	}
	f := newFiles()
	same(t, "no draws", fairness(f), "there is no draw in it yet")
	f.lines = []string{`{"Index":1,"Block":"","Lines":["` + secret + `","a 5 slashed"],"Ticket":1,"Total":5,"NextSeal":""}`}
	same(t, "a fault", fairness(f), "line 1: no entry could win")
	same(t, "no file", tabulate(io.Discard, iotest.ErrReader(io.ErrUnexpectedEOF)), "line 1: unexpected EOF")
	f = newFiles().round(most, most).round(most, -most).round(-most, most, most/4).round(most, most).crash().round(most).round()
	same(t, "6 draws of 5 blocks", fairness(f), `5 rounds, 6 validators; bars show wins, marks what was expected

validator     rounds  expected    wins    off
a2                 2       1.5       1   -1.0  ====================          |
c1                 3       0.9       1   +0.1  ==================|=
a1                 2       0.8       1   +0.2  ================|===
b1                 2       0.8       1   +0.3  ===============|====
b2                 1       0.5       1   +1.0  ==========|=========
d1                 1       0.4       0   -0.9          |`)

	all := []tally{
		{strings.Repeat("x", 64), 1_000_000, 1_000_000, 1_000_000, 0}, // always alone, so nothing was off
		{"lucky", 1_000_000, 15, 0, 0},
	}
	for i := range 22 {
		all = append(all, tally{fmt.Sprintf("v%d", i), 1000, 80 + i, 90, 25}) // off from -2.0 to +2.2
	}
	var b strings.Builder
	show(&b, 1_000_000, append(all, tally{"poor", 1000, 85, 70, 25}))
	lines := strings.Split(b.String(), "\n")
	same(t, "25 validators", strings.Join(append(lines[:5], lines[22:]...), "\n"), `1000000 rounds, 25 validators; bars show wins, marks what was expected

validator     rounds  expected    wins    off
xxxxxxxxxxxx 1000000 1000000.0 1000000   +0.0  ==============================|
lucky        1000000       0.0      15 +474341.6  |
v17             1000      90.0      97   +1.4  |
5 others        5000     430.0     483   +4.7  |

off: wins less those expected, in standard deviations. In a fair lottery about 1
validator in 22 is off by 2 or more, and 1 in 370 by 3 or more. Here, of 23 who
took part often enough to tell (a standard deviation of 2 wins): 4 and 1.
`)
}

// No file makes it panic, and what Parse takes goes through a record and back.
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
		if o := d.Outcome(d.Lines()); o.Winner >= 0 {
			record := NewRecord(1, "", d.Lines(), o, d)
			r := NewRecords(strings.NewReader(string(record) + "\n"))
			same(t, "a record is read", fmt.Sprint(r.Scan(), r.Outcome, r.Err()), fmt.Sprint(true, o, nil))
		}
	})
}
