package draw

import (
	"fmt"
	"maps"
	"math"
	"math/big"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"proofofstake/internal/console"
)

func same(t *testing.T, what string, got, want any) {
	t.Helper()
	if got, want := fmt.Sprint(got), fmt.Sprint(want); got != want {
		t.Errorf("%s: got\n%s\nwant\n%s", what, got, want)
	}
}

const (
	a199   = "a199cdea8894ecbe12c65b56fa395a64976f092c825e44bb5ba3a220c73793fa"
	c700   = "c700655083fd1a5a42a460566e477569e4a9273b9c9aa44f081a4b50fb600e71"
	block0 = "9fa00adf97e0d81be3e68f14ea88337abd6eaddb6c7016a873733aa5e48ea371"
	secret = "KBZ3ZK5EUBYQZ2WUTMH3RYMSGE"
	most   = math.MaxInt64
)

// Two draws, byte by byte. The second one has a redraw.
func TestExamples(t *testing.T) {
	d := &Draw{PrevBlock: block0, PrevDraw: None, secret: secret}
	first, last := d.Add(Entry{Name: a199, Tickets: 100, Note: "72"})
	same(t, "tickets of a199", fmt.Sprint(first, last), "1 100")
	first, last = d.Add(Entry{Name: c700, Tickets: 25, Note: "68"})
	same(t, "tickets of c700", fmt.Sprint(first, last), "101 125")
	o := d.Outcome()
	same(t, "lines", o.Lines, secret+"\n"+block0+"\nnone\n"+a199+" 100 72\n"+c700+" 25 68\n")
	const seal = "4a8377c366785157a146aef739d0258b68b4f437842478e6a465667832b3aa21"
	same(t, "seal", d.SealLine(1), "draw 1 seal: "+seal+"\n")
	same(t, "hash", o.Hash, "69dbafb84453f3705be180841b7513f7880f45b7b8f4b0b497a65553faab9d52")
	same(t, "outcome", fmt.Sprint(o, ", winner ", o.Winner), "ticket 28 of 125, winner 0")
	same(t, "record", string(NewRecord(1, "b1", o, d)), `{"Index":1,"Block":"b1","Lines":["`+secret+`","`+block0+
		`","none","`+a199+` 100 72","`+c700+` 25 68"],"Ticket":28,"Total":125,"NextSeal":"`+seal+`"}`)

	d.secret, d.PrevDraw = strings.Repeat("A", 26), o.Hash
	d.Slash(0)
	same(t, "eligible", fmt.Sprint(d.Eligible()), "1 25")
	for range 2 { // with the same outcome
		o = d.Outcome()
		same(t, "seal", d.Seal(), "dde06fe11761c0e395edaada776dff52eda8c940be1f3f1a65a3c5a3adf2f991")
		same(t, "hash", o.Hash, "c293ef931f417eb71ab1f3400379a3ec781b8383bcfb098b0d387a67ef79222f")
		same(t, "hash of it", hash(o.Hash+"\n"), "c6e6e18a465801817682b70e2e7f22263a4df77c9c5c70be1337f427bccefdd0")
		same(t, "outcome", fmt.Sprint(o, ", winner ", o.Winner),
			"ticket 62 of 125 was slashed; redraw: ticket 3 of 25, winner 1")
	}
	d.Slash(1)
	same(t, "winner if all are slashed", d.Outcome().Winner, -1)
}

// New never repeats a secret, and Again does. Results do not change when the draw does.
func TestNew(t *testing.T) {
	secrets := map[string]bool{}
	for range 1000 {
		secrets[New(block0, None).Secret()] = true
	}
	same(t, "secrets", len(secrets), 1000)
	d := New(block0, c700)
	same(t, "winner of no entries", d.Outcome().Winner, -1)
	first, last := d.Add(Entry{Name: "alice", Tickets: 5, Note: "72"})
	o := d.Outcome()
	d.Add(Entry{Name: "bob", Tickets: 7, Note: "68"})
	same(t, "tickets of alice", fmt.Sprint(first, last, o.Total), "1 5 5")
	same(t, "lines of Again", d.Again().Lines(), d.Secret()+"\n"+block0+"\n"+c700+"\n")
}

// Parse accepts what Lines returns, and nothing else.
func TestParse(t *testing.T) {
	good := []string{secret, a199, None, "alice 9223372036854775807 72", "bob 9223372036854775807 slashed", "carol 1 0"}
	d, err := Parse(good)
	if err != nil {
		t.Fatal(err)
	}
	same(t, "lines", d.Lines(), strings.Join(good, "\n")+"\n")
	same(t, "entries", d.Entries,
		"[{alice 9223372036854775807 72 false} {bob 9223372036854775807 slashed true} {carol 1 0 false}]")
	same(t, "eligible", fmt.Sprint(d.Eligible()), "2 9223372036854775808")
	for _, bad := range []string{"", "alice 5", "alice 5 ", "alice  5 72", " 5 72", "alice 5 72 1", "alice 0 72",
		"alice -5 72", "alice +5 72", "alice 05 72", "alice 1_0 72", "alice 9223372036854775808 72", "al\nice 5 72",
		"alice 5 72\r", "al\tice 5 72", "al\u202ece 5 72", "alice 5 \x7f", "alice 5 " + strings.Repeat("7", 1<<20) + "\n"} {
		_, err := Parse([]string{secret, a199, c700, "bob 1 1", bad})
		same(t, "error", err, console.Quote(bad, 100)+" is not an entry (address, stake, BPM)")
	}
	for _, bad := range [][]string{nil, {""}, {secret[1:], a199, None}, {secret + " ", a199, None}, {secret + "\nbob 1 1"},
		{secret}, {secret, a199}, {secret, None, a199}, {secret, a199, "None"}, {secret, a199[1:], None},
		{secret, a199, c700 + "0"}, {secret, strings.ToUpper(a199), None}} {
		if _, err := Parse(bad); err == nil || strings.Contains(err.Error(), "entry") {
			t.Errorf("Parse(%q) returns the error %v", bad, err)
		}
	}
}

// Each entry holds its tickets, in order: every ticket of small draws, and the first and last tickets of a huge one.
func TestHolder(t *testing.T) {
	for lines, want := range map[string]string{ // the holders of tickets 1 to 11, of all and of those that can win
		"a 3 1,b 1 1,c 2 1":                   "000122..... 000122.....",
		"a 2 slashed,b 3 1,c 1 slashed,d 4 1": "0011123333. 1113333....",
	} {
		d, _ := Parse(strings.Split(secret+","+a199+",none,"+lines, ","))
		got := ""
		for i := range int64(22) {
			got += ".0123"[d.holder(big.NewInt(1+i%11), i < 11)+1:][:1]
		}
		same(t, "holders of "+lines, got[:11]+" "+got[11:], want)
	}
	d := &Draw{secret: secret}
	for i, want := range []string{"1 9223372036854775807", "9223372036854775808 18446744073709551614",
		"18446744073709551615 27670116110564327421"} {
		first, last := d.Add(Entry{Name: "a", Tickets: most, Note: "1"})
		same(t, "tickets", fmt.Sprint(first, last), want)
		same(t, "holders of "+want, fmt.Sprint(d.holder(first, true), d.holder(last, true)), fmt.Sprint(i, i))
	}
	for hash, want := range map[string]int{"0": 1, "63": 100, "64": 1, "1" + strings.Repeat("0", 62): 57} { // 2^248
		same(t, "ticket of "+hash, ticket(hash, big.NewInt(100)), want)
	}
}

// A slashed entry costs no more than others. A record may have as many proposals as a round.
func TestManyEntries(t *testing.T) {
	d := New(block0, None)
	for i := range 20_000 {
		d.Add(Entry{Name: fmt.Sprint(a199, i), Tickets: most, Note: "1"})
		d.Slash(i)
	}
	d.Add(Entry{Name: "b", Tickets: most, Note: "1"})
	same(t, "few allocations", testing.AllocsPerRun(1, func() { d.Outcome() }) < 100, true)
	record := string(NewRecord(1, c700, d.Outcome(), d)) + "\n"
	same(t, "verify", verify(record, []block{{hash: block0}, {c700, "b", "1"}})[:6], "1 draw")
}

// newRound returns a round of a game: its kind, its secret and its entries, with new names. The kind is '.' if the draw
// was recorded and announced, 'r' if also the server was restarted after it, 'x' if a crash came between the draw and
// its block, and '-' if there was no draws file.
func newRound(i int, kind rune) string {
	return fmt.Sprintf("%c SECRET%020d,a%[2]d 100 70,f%[2]d 25 71,c%[2]d 50 slashed,d%[2]d 7 73\n", kind, i)
}

// newGame returns a game of rounds of these kinds.
func newGame(kinds string) (game string) {
	for i, kind := range kinds {
		game += newRound(i, kind)
	}
	return game
}

// files are the lines of a draws file, and a chain from the genesis block on.
type files struct {
	records, hashes, seals []string // each record, the hash of its draw, and how a summary shows its seal
	chain                  []block
}

type block struct{ hash, name, note string }

// play returns the files of a game. It computes everything that follows from the secrets and the entries.
func play(game string) files {
	f, prevDraw := files{chain: []block{{hash: block0}}}, None
	rounds := strings.Split(game, "\n")
	for i, round := range rounds[:len(rounds)-1] {
		index, prevBlock := len(f.chain), f.chain[len(f.chain)-1].hash
		secret, entries, _ := strings.Cut(round[2:], ",")
		d, _ := Parse(append([]string{secret, prevBlock, prevDraw}, strings.Split(entries, ",")...))
		o := d.Outcome()
		won := d.Entries[o.Winner]
		b := block{hash(prevBlock + won.Name + won.Note), won.Name, won.Note}
		next := &Draw{PrevBlock: b.hash, PrevDraw: o.Hash, secret: "a secret that is lost"}
		if round[0] == '.' && i+2 < len(rounds) {
			next.secret, _, _ = strings.Cut(rounds[i+1][2:], ",")
		}
		if round[0] != '-' {
			f.records = append(f.records, string(NewRecord(index, b.hash, o, next))+"\n")
			f.hashes = append(f.hashes, o.Hash)
			f.seals = append(f.seals, fmt.Sprintf(
				"if you noted this seal, no block or draw before draw %d has changed since:\n%s", index, d.SealLine(index)))
			prevDraw = o.Hash
		}
		if round[0] != 'x' {
			f.chain = append(f.chain, b)
		}
	}
	return f
}

// verify returns the summary of a draws file, or its first error.
func verify(draws string, chain []block) string {
	r := NewRecords(strings.NewReader(draws))
	for i, b := range chain {
		r.CheckBlock(i, b.hash, b.name, b.note)
	}
	if err := r.CheckEnd(); err != nil {
		return err.Error()
	}
	return r.Summary()
}

// TestRecords verifies files that are as a server leaves them, and files in which lines are missing, moved or edited.
func TestRecords(t *testing.T) {
	for _, c := range []struct {
		kinds, lines string // of the game, and of the draws file, whose first line is a
		lost         int    // blocks at the end of the chain
		old, new     string // an edit of the draws file
		want         string // the seal of the last line follows; or how the error begins
	}{
		{"....", "", 0, "", "", "0 draws; 4 blocks without a draw record"},
		{"....", "ab", 0, "", "", "2 draws; 2 blocks without a draw record"},
		{"....", "cd", 0, "", "", "2 draws; 2 blocks without a draw record; the file continues from draw\n  <D>"},
		{"....", "acd", 0, "", "", "line 2: it does not name the draw before it"},
		{"....", "abcd", 1, "", "", "3 draws; 1 draw not announced (line 4)"},
		{"....", "abcd", 2, "", "", "line 4: its block is not in the chain"},
		{"x...", "abcd", 0, "", "", "3 draws; 1 draw not announced (line 1); 1 new seal, as after a restart (line 2)"},
		{"x...", "bcd", 0, "", "", "3 draws; the file continues from draw\n  <D>"},
		{".x--", "ab", 0, "", "", "1 draw; 2 blocks without a draw record; 1 draw not announced (line 2)"},
		{"..xx", "abcd", 0, "", "",
			"2 draws; 2 draws not announced (lines 3, 4); 1 new seal, as after a restart (line 4)"},
		{".rr-.", "abcd", 0, "", "",
			"4 draws; 1 block without a draw record; 1 new seal, as after a restart (line 3)"},
		{"..", "ab", 0, `"NextSeal":"\w+`, `"NextSeal":"` + a199, "2 draws; 1 new seal, as after a restart (line 2)"},
		{"..", "ab", 0, `"NextSeal":"\w`, `"NextSeal":"`, "line 1: its Index is below 1, or its Block or NextSeal"},
		{"..", "ab", 0, `"Block":"\w`, `"Block":"`, "line 1: its Index is below 1, or its Block or NextSeal"},
		{"..", "ab", 0, `"Index":1`, `"Index":0`, "line 1: its Index is below 1, or its Block or NextSeal"},
		{"..", "ab", 0, `"Index":1`, `"Index":2`, "line 1: it does not name the block before it, block 1"},
		{"..", "ab", 0, `"Index":2`, `"Index":1`, "line 2: out of order: it follows the record of block 1"},
		{".x.", "abc", 0, `(?s)(.*)"Index":2`, `$1"Index":1`, "line 3: out of order: it follows the record of block 2"},
		{"..", "ab", 0, `"Block":"\w+`, `"Block":"` + a199, "line 1: it does not match block 1 of the chain"},
		{"x.", "ab", 0, `"Block":"\w+`, `"Block":"<1>`, "line 1: it does not match block 1 of the chain"},
		{"..", "ab", 0, `"Ticket":`, `"Ticket":1`, "line 1: its lines give ticket "},
		{"..", "ab", 0, `"Total":`, `"Total":1`, "line 1: its lines give ticket "},
		{"..", "ab", 0, `f0 25`, `a0 25`, "line 1: \"a0\" has two entries"},
		{"..", "ab", 0, `"a0.*?]`, `"a0 100 slashed"]`, "line 1: every entry was slashed"},
		{"..", "ab", 0, `"Index"`, `"index"`, "line 1: not canonical JSON"},
	} {
		f, draws, last := play(newGame(c.kinds)), "", 0
		for _, letter := range c.lines {
			last = int(letter - 'a')
			draws += f.records[last]
		}
		edited := strings.Replace(c.new, "<1>", f.chain[len(f.chain)-1].hash, 1)
		draws = regexp.MustCompile(c.old).ReplaceAllString(draws, edited)
		got, want := verify(draws, f.chain[:len(f.chain)-c.lost]), c.want
		if strings.HasPrefix(want, "line ") {
			got = got[:min(len(got), len(want))]
		} else if want += "\n"; draws != "" {
			before := f.hashes[max(0, int(c.lines[0])-'b')] // the draw that the first line names
			want = strings.Replace(want, "<D>", before, 1) + f.seals[last]
		}
		same(t, fmt.Sprint(c), got, want)
	}
	f := play(newGame("."))
	f.chain[1].note = "1"
	const noMatch = "line 1: it does not match block 1 of the chain (hash, winner or BPM)"
	same(t, "another BPM", verify(f.records[0], f.chain), noMatch)
}

// TestRewrites rewrites a game and computes everything that follows, as an adversary can who has the code and both
// files. Verification never ends on the last genuine seal, even if only the first records, or only the records or the
// chain are rewritten.
func TestRewrites(t *testing.T) {
	const kinds = "...x..r-....."
	game := newGame(kinds)
	genuine := play(game)
	end := genuine.seals[len(genuine.seals)-1]
	same(t, "the genuine game", verify(strings.Join(genuine.records, ""), genuine.chain), "11 draws; "+
		"1 block without a draw record; 1 draw not announced (line 4); 1 new seal, as after a restart (line 5)\n"+end)
	const a, b, c, d = "a4 100 70", "f4 25 71", "c4 50 slashed", "d4 7 73" // a has won
	round := func(i int) string { return newRound(i, rune(kinds[i])) }
	mined := game
	for i := 4; i < len(kinds); i++ { // change a BPM until the same entry wins, so that the chain stays as it was
		before := mined
		for bpm := 0; bpm == 0 || play(mined).chain[i] != genuine.chain[i] && bpm < 1000; bpm++ {
			mined = strings.Replace(before, fmt.Sprintf("d%d 7 73", i), fmt.Sprintf("d%d 7 %d", i, bpm), 1)
		}
	}
	before := func(draws string, chain []block) string { // the lines of all draws, and the blocks before the last one
		return fmt.Sprint(regexp.MustCompile(`"Lines":.*?]`).FindAllString(draws, -1), chain[:min(12, len(chain))])
	}
	for what, edit := range map[string][2]string{
		"a loser is removed":               {"," + b, ""},
		"the winner is removed":            {a + ",", ""},
		"an entry is added":                {d, d + ",m 9 1"},
		"a stake is cut":                   {b, "f4 24 71"},
		"a loser is renamed":               {b, "m 25 71"},
		"the winner is renamed":            {a, "m 100 70"},
		"two entries are swapped":          {a + "," + b, b + "," + a},
		"the BPM of a loser is changed":    {b, "f4 25 1"},
		"the BPM of the winner is changed": {a, "a4 100 1"},
		"a loser is slashed":               {b, "f4 25 slashed"},
		"a slashed one is not":             {c, "c4 50 72"},
		"the secret is another one":        {"00004,", "XXXXX,"},
		"a draw becomes unannounced":       {round(4), newRound(4, 'x')},
		"a draw is not recorded":           {round(4), newRound(4, '-')},
		"a draw is recorded":               {round(7), newRound(7, '.')},
		"an unannounced draw is announced": {round(3), newRound(3, '.')},
		"an unannounced draw is changed":   {"f3 25 71", "f3 25 1"},
		"an unannounced draw is removed":   {round(3), ""},
		"a block without record is added":  {round(4), newRound(13, '-') + round(4)},
		"foreign draws stand in front":     {round(0), newRound(13, '.') + newRound(14, '.') + round(0)},
		"the first draw is removed":        {round(0), ""},
		"a draw is removed":                {round(4), ""},
		"the last draw is removed":         {round(12), ""},
		"two draws are swapped":            {round(4) + round(5), round(5) + round(4)},
		"the BPMs are mined":               {game, mined},
	} {
		f := play(strings.Replace(game, edit[0], edit[1], 1))
		same(t, what+": nothing rewritten", slices.Equal(f.records, genuine.records), false)
		for i := range f.records {
			draws := strings.Join(f.records[:i+1], "") + strings.Join(genuine.records[min(i+1, len(genuine.records)):], "")
			for _, chain := range [][]block{genuine.chain, f.chain} {
				isGenuine := before(draws, chain) == before(strings.Join(genuine.records, ""), genuine.chain)
				if got := verify(draws, chain); strings.HasSuffix(got, end) && !isGenuine {
					t.Errorf("%s, up to line %d: verify says\n%s", what, i+1, got)
				}
			}
		}
	}
}

// TestFairness counts the announced draws of a game, and the entries that could win them.
func TestFairness(t *testing.T) {
	dir := t.TempDir() + "/"
	os.WriteFile(dir+"other", []byte("another\nchain\nof\nblocks\n"), 0o644)
	for _, c := range []struct {
		kinds, chain string // of the game, and the chain file
		want         string // how the output or the error begins
	}{
		{"....", "chain", "4 rounds, 12 validators. "},
		{"x..xx.x", "chain", "3 rounds, 9 validators. "},
		{"..x", "none", "3 rounds, "},
		{"..x", "other", "3 rounds, "},
		{".x--.", "chain", "2 rounds, "},
		{".x--.", "none", "3 rounds, "},
		{".x-.", "none", "2 rounds, "},
		{".--.--.", "chain", "3 rounds, "},
		{"x", "chain", dir + "draws: no draws yet"},
		{"", "chain", dir + "draws: no draws yet"},
		{"..", "chain", `2 rounds, 6 validators. Bar (=): wins. Mark (|): expected wins.

validator     rounds  expected    wins      z
a0                 1       0.8       1   +0.6  ======================|=======
a1                 1       0.8       1   +0.6  ======================|=======
f0                 1       0.2       0   -0.5       |
f1                 1       0.2       0   -0.5       |
d0                 1       0.1       0   -0.2   |
d1                 1       0.1       0   -0.2   |

z: wins minus expected wins, in standard deviations. In a fair lottery about 1
validator in 22 is beyond 2 (+ or -), and 1 in 370 beyond 3.
Too few rounds to tell about one validator: it takes about 42 more.
`},
	} {
		f := play(newGame(c.kinds))
		os.WriteFile(dir+"draws", []byte(strings.Join(f.records, "")), 0o644)
		os.WriteFile(dir+"chain", []byte(strings.ReplaceAll(fmt.Sprintln(f.chain), "} {", "}\n{")), 0o644)
		var got strings.Builder
		if err := Fairness(&got, dir+"draws", dir+c.chain); err != nil {
			got.WriteString(err.Error())
		}
		same(t, c.kinds, got.String()[:min(got.Len(), len(c.want))], c.want)
	}
}

// shown returns what show shows.
func shown(rounds int, large tally, all []tally) string {
	var b strings.Builder
	show(&b, rounds, large, all)
	return b.String()
}

// TestShow shows 20 names. The legend counts all names with enough rounds to tell. The others, taken together, neither
// shrink the bars of the 20 nor get a z that is exaggerated, or too small because only one of them wins a round.
func TestShow(t *testing.T) {
	all := []tally{
		{name: strings.Repeat("x", 64), rounds: 1_000_000, wins: 1_000_000, expected: 1_000_000}, // always alone
		{name: "lucky", rounds: 1_000_000, wins: 15},
	}
	for i := range 22 { // z from -2.0 to +2.2
		all = append(all, tally{name: fmt.Sprint("v", i), rounds: 1000, wins: 80 + i, expected: 90, variance: 25})
	}
	all = append(all, tally{name: "unlucky", rounds: 1000, wins: 60, expected: 70, variance: 4}, // z -5.0
		tally{name: "rare", rounds: 1000, wins: 60, expected: 70, variance: 3})
	table := func(rounds int, all []tally) string {
		lines := strings.Split(shown(rounds, tally{}, all), "\n")
		return strings.Join(append(lines[3:5], lines[22:]...), "\n")
	}
	same(t, "of 26", table(1e6, all), `xxxxxxxxxxxx 1000000 1000000.0 1000000   +0.0  ==============================|
lucky        1000000       0.0      15 +474341.6  |
v17             1000      90.0      97   +1.4  |
6 others        6000     500.0     518   +1.7  |

The bar of the others shows their average.
z: wins minus expected wins, in standard deviations. In a fair lottery about 1
validator in 22 is beyond 2 (+ or -), and 1 in 370 beyond 3. Of the 23 with
enough rounds to tell (deviation of 2 wins or more): 4 beyond 2, 1 beyond 3.
`)
	same(t, "21 validators", strings.Contains(table(1e6, all[:21]), "\n1 other "), true)
	equal := make([]tally, 30)
	for i := range equal {
		equal[i] = tally{name: fmt.Sprint("v", i), rounds: 45, wins: i % 4, expected: 1.5, variance: 1.45}
	}
	bars, _, _ := strings.Cut(table(45, equal), "\n\n")
	same(t, "30 equal stakes", bars, `v0                45       1.5       0   -1.2                 |
v1                45       1.5       1   -0.4  ==========     |
v19               45       1.5       3   +1.2  ===============|==============
10 others        450      15.0      13   -0.6  =============  |`)
	same(t, "no rival", strings.Contains(shown(1e6, tally{}, all[:1]), "\nNothing to tell: no validator had a"), true)
}

// In each draw, the stakes above the average count as one, unless they are too sure of winning to tell anything.
func TestStakesAboveAverage(t *testing.T) {
	for entries, want := range map[string]string{ // the first one wins 25 draws
		"a 46 1,b 29 1,c 25 1,d 1 slashed": "Stakes above the average won 25 of 25 rounds: 11.5 expected, z +5.4.",
		"a 20 1,b 60 1,c 40 1":             "Stakes above the average won 0 of 25 rounds: 12.5 expected, z -5.0.",
		"a 30 1,b 30 1,c 40 1":             "Stakes above the average won 0 of 25 rounds: 10.0 expected, z -4.1.",
		"a 40 1,b 40 1,c 9 1":              "enough rounds to tell (deviation of 2 wins or more): 2 beyond 2, 2 beyond 3.",
		"a 7 1,b 7 1,c 9 slashed":          "enough rounds to tell (deviation of 2 wins or more): 2 beyond 2, 2 beyond 3.",
	} {
		d, _ := Parse(strings.Split(secret+","+a199+",none,"+entries, ","))
		tallies, large := map[string]tally{}, tally{}
		for range 25 {
			count(tallies, &large, d, 0)
		}
		got := shown(25, large, slices.Collect(maps.Values(tallies)))
		same(t, entries, got[max(0, len(got)-len(want)-2):], "\n"+want+"\n")
	}
}

// FuzzRecords checks that no file makes reading panic, and that a change of a file never goes unnoticed.
func FuzzRecords(f *testing.F) {
	good := play(newGame(".x.r."))
	f.Add(strings.Join(good.records, ""), secret+"\n"+block0+"\nnone\nalice 5 72\nbob 7 slashed")
	f.Add(`{"Index":1,"Block":"","Lines":null,"Ticket":null,"Total":null,"NextSeal":""}`+"\nnull\n\n", secret)
	f.Fuzz(func(t *testing.T, draws, lines string) {
		verify(draws, good.chain)
		d, err := Parse(strings.Split(lines, "\n"))
		if err != nil {
			return
		}
		same(t, "lines", d.Lines(), lines+"\n")
		if o := d.Outcome(); o.Winner >= 0 {
			decoded, err := Decode(NewRecord(1, block0, o, d))
			same(t, "error", err, nil)
			same(t, "outcome", decoded.Outcome, o)
		}
	})
}
