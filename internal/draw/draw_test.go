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
	"time"
)

func same(t *testing.T, what string, got, want any) {
	t.Helper()
	if got, want := fmt.Sprint(got), fmt.Sprint(want); got != want {
		t.Errorf("%s:\n%s\nwant:\n%s", what, got, want)
	}
}

func hash(s string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(s))) }

const (
	a199   = "a199cdea8894ecbe12c65b56fa395a64976f092c825e44bb5ba3a220c73793fa"
	c700   = "c700655083fd1a5a42a460566e477569e4a9273b9c9aa44f081a4b50fb600e71"
	secret = "KBZ3ZK5EUBYQZ2WUTMH3RYMSGE"
	most   = math.MaxInt64
)

// The examples of the contract, byte by byte.
func TestExamples(t *testing.T) {
	d := &Draw{secret: secret}
	same(t, "seal", d.Seal(), "607fbc17a7d3a1c85183c0488f5b2fcb7e10f75494c8813b6f2b43ccbed32427")
	first, last := d.Add(Entry{Name: a199, Tickets: 100, Note: "72"})
	same(t, "tickets of a199", fmt.Sprint(first, last), "1 100")
	first, last = d.Add(Entry{Name: c700, Tickets: 25, Note: "68"})
	same(t, "tickets of c700", fmt.Sprint(first, last), "101 125")
	lines := d.Lines()
	same(t, "lines", lines, secret+"\n"+a199+" 100 72\n"+c700+" 25 68\n")
	same(t, "D", hash(lines), "49a896440ab40ef8049374b9bb86e601b408abc2a463cc84173fd1ae58b9347c")
	o := d.Outcome(lines)
	same(t, "outcome", o, "ticket 21 of 125")
	same(t, "winner", o.Winner, 0)
	record, _ := NewRecord(1, "b1", lines, o, d)
	same(t, "record", string(record), `{"Index":1,"Block":"b1","Lines":["`+secret+`","`+a199+` 100 72","`+c700+` 25 68"],`+
		`"Ticket":21,"Total":125,"NextSeal":"607fbc17a7d3a1c85183c0488f5b2fcb7e10f75494c8813b6f2b43ccbed32427"}`)

	d.secret = strings.Repeat("A", 26)
	d.Slash(0)
	lines = d.Lines()
	same(t, "lines", lines, "AAAAAAAAAAAAAAAAAAAAAAAAAA\n"+a199+" 100 slashed\n"+c700+" 25 68\n")
	same(t, "D'", hash(hash(lines)+"\n"), "c38035136f08f56d0c8366ea641553f89d4013eab0654d9cb6957909707cc89d")
	o = d.Outcome(lines)
	same(t, "outcome", o, "ticket 59 of 125 was slashed, again: ticket 3 of 25")
	same(t, "winner", o.Winner, 1)
	same(t, "outcome at a second look", d.Outcome(lines), o)
	entries, tickets := d.CanWin()
	same(t, "who can win", fmt.Sprint(entries, tickets), "1 25")
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
	first, last := d.Add(Entry{Name: "alice", Tickets: 5, Note: "72"})
	o := d.Outcome(d.Lines())
	d.Add(Entry{Name: "bob", Tickets: 7, Note: "68"})
	d.Slash(0)
	same(t, "alice's tickets and their total", fmt.Sprint(first, last, o.Total), "1 5 5")
	entries, tickets := d.Again().CanWin()
	same(t, "again", fmt.Sprint(entries, tickets, d.Again().Lines(), d.Again().Seal()), fmt.Sprint(0, 0, d.Secret()+"\n", d.Seal()))
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
	entries, tickets := d.CanWin()
	same(t, "who can win", fmt.Sprint(entries, tickets), "2 9223372036854775808")
	for _, bad := range []string{"", "alice", "alice 5", "alice 5 ", "alice  5 72", " 5 72", "alice 5 72 ", "alice 5 72 1", "alice 0 72", "alice -5 72",
		"alice +5 72", "alice 05 72", "alice 5.0 72", "alice 0x5 72", "alice 9223372036854775808 72", "al\nice 5 72", "alice 5 7\n2", "alice 5 72\n",
		"alice 5 72\r", "al\tice 5 72", "al\u00efce 5 72", "alice 5 \x7f", "alice 5 \x00", "alice 5 " + strings.Repeat("7", 1<<20) + "\n"} {
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
	for _, lines := range []string{"a 1 1", "a 3 1,b 1 1,c 2 1", "a 2 slashed,b 3 1,c 1 slashed,d 4 1", "a 1 1,b 5 slashed", "a 1 slashed,b 7 1,c 2 1,d 1 1"} {
		d, _ := Parse(strings.Split(secret+","+lines, ","))
		for _, all := range []bool{true, false} {
			var want, got []int
			for i, e := range d.Entries {
				if all || !e.Slashed {
					want = append(want, slices.Repeat([]int{i}, int(e.Tickets))...)
				}
			}
			for ticket := range want {
				got = append(got, d.holder(big.NewInt(int64(ticket)+1), all))
			}
			same(t, "holders of the tickets of "+lines, got, want)
			same(t, "holder of no ticket", d.holder(big.NewInt(int64(len(want))+1), all), -1)
		}
	}
	d := New()
	for i, want := range []string{"1 9223372036854775807", "9223372036854775808 18446744073709551614",
		"18446744073709551615 27670116110564327421", "27670116110564327422 27670116110564327422"} {
		first, last := d.Add(Entry{Name: "a", Tickets: []int64{most, most, most, 1}[i], Note: "1"})
		same(t, "tickets", fmt.Sprint(first, last), want)
		same(t, "their holders", fmt.Sprint(d.holder(first, true), d.holder(last, true)), fmt.Sprint(i, i))
	}
	for sum, want := range map[[32]byte]int{{}: 1, {31: 99}: 100, {31: 100}: 1, {0: 1}: 57, {0: 128}: 69} { // 2^248 ends in 56, 2^255 in 68
		same(t, fmt.Sprintf("%x as a ticket of 100", sum), ticket(sum, big.NewInt(100)), want)
	}
}

// Slashed entries cost no more than others, however many they are and whatever they have staked.
func TestSlashedCostNothing(t *testing.T) {
	d := &Draw{secret: secret}
	for i := range 200_000 {
		d.Add(Entry{Name: "a", Tickets: most, Note: "1"})
		d.Slash(i)
	}
	d.Add(Entry{Name: "b", Tickets: most, Note: "1"})
	lines := d.Lines()
	again, _ := new(big.Int).SetString(hash(hash(lines)+"\n"), 16)
	same(t, "ticket", d.Outcome(lines).Ticket, again.Add(again.Mod(again, big.NewInt(most)), big.NewInt(1)))
	start := time.Now()
	allocations := testing.AllocsPerRun(1, func() { same(t, "winner", d.Outcome(lines).Winner, 200_000) })
	if took := time.Since(start); took > 10*time.Second || allocations > 100 {
		t.Errorf("to draw twice took %v, and once %v allocations", took, allocations)
	}
}

// Chi-square over the hashes of 100,000 secrets: wins follow tickets, as far off as once in a million times at
// most, also where they are 2^63, 3/4 of 2^64 or more.
func TestFair(t *testing.T) {
	const draws, n = 100_000, 9
	for _, stakes := range [][2]int64{{1, 5}, {most / n, 0}, {3 << 62 / n, 0}, {most / 2, most / 20}} { // the least, and what each has more than the one before
		d := &Draw{}
		for i := range int64(n) {
			d.Add(Entry{Name: "a", Tickets: stakes[0] + i*stakes[1], Note: "1"})
		}
		var wins [n]float64
		for i := range draws {
			d.secret = fmt.Sprintf("%026d", i)
			wins[d.Outcome(d.Lines()).Winner]++
		}
		_, all := d.CanWin()
		total, _ := all.Float64()
		x := 0.0 // half of chi-square
		for i, won := range wins {
			expected := draws * float64(d.Entries[i].Tickets) / total
			x += (won - expected) * (won - expected) / expected / 2
		}
		if p := math.Exp(-x) * (1 + x + x*x/2 + x*x*x/6); p < 1e-6 { // with 8 degrees of freedom
			t.Errorf("of %v tickets: wins %v are so far off in one of %.0f times", total, wins, 1/p)
		}
	}
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
		d.Add(Entry{Name: fmt.Sprintf("%c%d", 'a'+i, f.starts), Tickets: max(stake, -stake), Note: fmt.Sprint(70 + i)})
		if stake < 0 {
			d.Slash(i)
		}
	}
	f.next = &Draw{secret: hash(d.secret)[:26]}
	lines := d.Lines()
	o := d.Outcome(lines)
	line, _ := NewRecord(len(f.chain), hash(lines), lines, o, f.next)
	f.lines = append(f.lines, string(line))
	f.chain = append(f.chain, block{hash(lines), d.Entries[o.Winner].Name, d.Entries[o.Winner].Note})
	return f
}

// verify returns how many records of a draws file match, the lines where the seal was made anew, and the fault.
func (f *files) verify(draws string) string {
	r := NewRecords(strings.NewReader(draws))
	r.Scan()
	for i, b := range f.chain {
		r.Match(i, b.hash, b.name, b.note)
	}
	err := r.MatchEnd(len(f.chain) - 1)
	return fmt.Sprint(r.matched, r.anew, " ", err)
}

// Records may be missing, or without a block in the chain if the last for their index; all else is a fault.
func TestMatch(t *testing.T) {
	plain := newFiles().round().round().round(5).round(most, 5)
	killed := newFiles().round().round().round().round().crash()
	crashed := newFiles().round().round().crash().round().round().crash().round().crash() // for blocks 1, 2, 2, 3, 3
	restarted := newFiles().round().restart().round().round().crash().round()
	first, spoiled := (&files{}).restart().round(), newFiles().round().round()
	spoiled.lines[0] = strings.Replace(spoiled.lines[1], `"Index":2`, `"index":7`, 1)
	otherBPM, otherWinner := newFiles().round().round(), newFiles().round().round()
	otherBPM.chain[2].note, otherWinner.chain[2].name = "1", "b1"
	for _, c := range []struct {
		files *files
		lines string // in this order, numbered from 1
		want  string
	}{
		{plain, "1234", "4 [] <nil>"},
		{plain, "", "0 [] <nil>"},
		{plain, "24", "2 [] <nil>"},
		{plain, "11234", "1 [] line 2: block 1 has a record already"},
		{plain, "12344", "4 [] line 5: block 4 has a record already"},
		{plain, "1324", "2 [] line 3: it comes behind that of block 3"},
		{plain, "1243", "3 [] line 4: its block is not in the chain, or not in that order"},
		{killed, "1234", "3 [] <nil>"}, // the last one has the winner of the head
		{killed, "1243", "2 [] line 4: its block is not in the chain, or not in that order"},
		{crashed, "12345", "2 [3 5] <nil>"},
		{crashed, "14", "1 [] <nil>"},
		{crashed, "125", "1 [] line 2: its block is not in the chain, or not in that order"},
		{crashed, "132", "2 [2] line 3: block 2 has a record already"},
		{restarted, "1234", "3 [2 4] <nil>"},
		{otherBPM, "12", "1 [] line 2: block 2 of the chain has another hash, winner or BPM"},
		{first, "1", "0 [] line 1: block 0 is not drawn"},
		{spoiled, "12", "0 [] line 1: bad JSON: it should be " + strings.Replace(spoiled.lines[0], "index", "Index", 1)[:200]},
		{otherWinner, "12", "1 [] line 2: block 2 of the chain has another hash, winner or BPM"},
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
	same(t, "as it was", f.verify(draws), "3 [3] <nil>")
	harmless := draws
	for n, line := range f.lines {
		var good Record
		json.Unmarshal([]byte(line), &good)
		if n > 0 { // there is no record of the draw that it seals
			harmless = strings.Replace(harmless, good.NextSeal, strings.Repeat("*", 64), 1)
		}
		if n == 1 { // it was not announced
			harmless = strings.Replace(harmless, good.Block, strings.Repeat("*", 64), 1)
			continue
		}
		tamper := func(change func(r *Record)) {
			r := good
			r.Lines = slices.Clone(r.Lines)
			change(&r)
			changed, _ := json.Marshal(r)
			if got := f.verify(strings.Replace(draws, line, string(changed), 1)); string(changed) != line && !strings.Contains(got, fmt.Sprintf(" line %d: ", n+1)) {
				t.Errorf("of line %d as\n%s\nit says %s", n+1, changed, got)
			}
		}
		for i, b := range f.chain {
			tamper(func(r *Record) { r.Block = b.hash })
			tamper(func(r *Record) { r.Index = i })
			tamper(func(r *Record) { r.Index = i + len(f.chain) })
		}
		for i, line := range good.Lines {
			tamper(func(r *Record) { r.Lines = slices.Insert(r.Lines, i, line) })
			tamper(func(r *Record) { r.Lines = slices.Delete(r.Lines, i, i+1) })
			tamper(func(r *Record) { r.Lines[0], r.Lines[i] = line, r.Lines[0] })
		}
		tamper(func(r *Record) { r.Lines = nil })
		for _, wrong := range []string{"", "1", "-1", "1e3", strings.Repeat("9", 1000), strings.Repeat("A", 64)} {
			tamper(func(r *Record) { r.Ticket = json.Number(wrong) })
			tamper(func(r *Record) { r.Total = json.Number(wrong) })
			tamper(func(r *Record) { r.NextSeal = wrong })
		}
	}
	for bit := range 8 * len(draws) {
		at, changed := bit/8, []byte(draws)
		changed[at] ^= 1 << (bit % 8)
		if harmless[at] != '*' && f.verify(string(changed)) == "3 [3] <nil>" {
			t.Fatalf("nobody sees that byte %d is %q now: %s", at, changed[at], changed)
		}
	}
}

// What fairness shows: neither a draw that was not announced counts, nor who was slashed.
func TestFairness(t *testing.T) {
	fairness := func(f *files) string {
		var b strings.Builder
		err := Fairness(&b, strings.NewReader(strings.Join(append(f.lines, ""), "\n")))
		return b.String() + fmt.Sprint(err)
	}
	f := newFiles()
	same(t, "no draws", fairness(f), "there is no draw in it yet")
	f.lines = []string{`{"Index":1,"Block":"","Lines":["` + secret + `","a 5 slashed"],"Ticket":1,"Total":5,"NextSeal":""}`}
	same(t, "a fault", fairness(f), "line 1: no entry could win")
	same(t, "no file", Fairness(io.Discard, iotest.ErrReader(io.ErrUnexpectedEOF)), "line 1: unexpected EOF")
	f = newFiles().round(most, most).round(most, -most).round(-most, most, most/4).round(most, most).crash().round(most).round()
	same(t, "6 draws of 5 blocks", fairness(f), `5 rounds, 6 validators; bars show wins, marks what was expected

validator     rounds  expected    wins    off
a2                 2       1.5       1   -1.0  ====================          |
c1                 3       0.9       1   +0.1  ==================|=
a1                 2       0.8       1   +0.2  ================|===
b1                 2       0.8       1   +0.3  ===============|====
b2                 1       0.5       1   +1.0  ==========|=========
d1                 1       0.4       0   -0.9          |

off: wins less those expected, in standard deviations. In a fair lottery about 1
validator in 22 is off by 2 or more, and 1 in 370 by 3 or more. Here, of 0 who
took part often enough to tell (a standard deviation of 2 wins): 0 and 0.
<nil>`)

	all := []tally{{strings.Repeat("x", 64), 1_000_000, 1_000_000, 1_000_000, 0}} // always alone, so nothing was off
	for i := range 22 {
		all = append(all, tally{fmt.Sprintf("v%d", i), 1000, 80 + i, 90, 25}) // off from -2.0 to +2.2
	}
	all = append(all, tally{"lucky", 1_000_000, 15, 0, 0}, tally{"poor", 1000, 85, 70, 25})
	var b strings.Builder
	show(&b, 1_000_000, all)
	lines := strings.Split(b.String(), "\n")
	same(t, "with 25 validators it shows so many lines", len(lines), 29)
	same(t, "the first", lines[0], "1000000 rounds, 25 validators; bars show wins, marks what was expected")
	same(t, "that of the largest", lines[3], "xxxxxxxxxxxx 1000000 1000000.0 1000000   +0.0  ==============================|")
	same(t, "that of the last", lines[22], "v18             1000      90.0      98   +1.6  |")
	same(t, "the others", lines[23], "5 others     1004000     340.0     400   +6.0  |")
	same(t, "the end", lines[26]+" "+lines[27], "validator in 22 is off by 2 or more, and 1 in 370 by 3 or more. Here, of 23 who "+
		"took part often enough to tell (a standard deviation of 2 wins): 4 and 1.")
	b.Reset()
	show(&b, 1_000_000, all[23:])
	for _, line := range append(lines, strings.Split(b.String(), "\n")...) {
		if len(line) > 80 {
			t.Errorf("%q has more than 80 columns", line)
		}
	}
}

// No file makes it panic, and what Parse takes goes through a record and back.
func FuzzRecords(f *testing.F) {
	good := newFiles().round(most, -most).round(5).crash().round()
	f.Add(strings.Join(good.lines, "\n")+"\n", secret+"\nalice 5 72\nbob 7 slashed")
	f.Add(`{"Index":1,"Block":"","Lines":null,"Ticket":null,"Total":null,"NextSeal":""}`+"\nnull\n\n", secret)
	f.Fuzz(func(t *testing.T, file, lines string) {
		good.verify(file)
		Fairness(io.Discard, strings.NewReader(file))
		d, err := Parse(strings.Split(lines, "\n"))
		if err != nil {
			return
		}
		same(t, "lines", d.Lines(), lines+"\n")
		if o := d.Outcome(d.Lines()); o.Winner >= 0 {
			record, _ := NewRecord(1, "", d.Lines(), o, d)
			r := NewRecords(strings.NewReader(string(record) + "\n"))
			same(t, "a record is read", fmt.Sprint(r.Scan(), r.Outcome, r.Err()), fmt.Sprint(true, o, nil))
		}
	})
}
