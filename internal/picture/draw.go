package main

import (
	"bytes"
	"fmt"
	"html"
	"regexp"
	"strings"
	"unicode/utf8"
)

// caption is what the picture says of itself.
const caption = "A real evening, the first that Alice won, drawn by “make picture”; nc shows what the server sends. Bold: typed; ↵: Enter.\n" +
	"Fixed, since they differ every time, and cut at “…”: addresses, hashes, secret, ticket, clock, time left, port. Lines wrap."

// theme is the colours of a picture.
type theme struct{ window, bar, border, text, dim, typed string }

// themes is the pictures to be drawn.
var themes = map[string]theme{
	"evening-light.svg": {"#ffffff", "#f6f8fa", "#d1d9e0", "#1f2328", "#59636e", "#0550ae"},
	"evening-dark.svg":  {"#0d1117", "#21262d", "#3d444d", "#e6edf3", "#9198a1", "#79c0ff"},
}

// The measures of a picture. It is as wide as GitHub shows a README, so that a unit is a pixel there.
const (
	width, gap     = 830, 10
	half           = (width - gap) / 2
	large, small   = 13, 11 // the size of the font, and of that of the caption
	line, bar, pad = 17, 27, 9
)

// picture is an SVG that is being drawn.
type picture struct {
	bytes.Buffer
	theme
}

func (p *picture) printf(format string, args ...any) { fmt.Fprintf(p, format, args...) }

// draw draws what Alice, Bob and the console were shown.
func draw(colours theme, shown []string) []byte {
	alice, bob := wrap("$ \tnc localhost 9000\n"+shown[0], 50), wrap("$ \tnc localhost 9000\n"+shown[1], 50)
	console := wrap("$ \tROUND=5s go run .\n"+shown[2], 104)
	upper, lower := bar+len(console)*line+2*pad, bar+max(len(alice), len(bob))*line+2*pad
	end := upper + gap + lower
	p := &picture{theme: colours}
	p.printf(`<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %[1]d %[2]d" role="img" xml:space="preserve" `+
		`font-family="ui-monospace, SFMono-Regular, Menlo, Consolas, 'Liberation Mono', monospace">`+"\n", width, end+gap+2*line)
	p.printf("<title>An evening with two validators</title>\n<desc>The console of the server and, below it, two terminals. Alice stakes 100 tokens " +
		"and types 72, Bob stakes 25 and types 68. Alice wins the draw and forges block 1. Then Bob types abc and is slashed.</desc>\n")
	for i, s := range strings.Split(caption, "\n") {
		p.line(pad, end+gap+(i+1)*line-9, small, p.dim, s)
	}
	p.window("go run .", 0, 0, width, upper, console)
	p.window("nc localhost 9000 — Alice", 0, upper+gap, half, lower, alice)
	p.window("nc localhost 9000 — Bob", half+gap, upper+gap, half, lower, bob)
	p.printf("</svg>\n")
	return p.Bytes()
}

// wrap is the lines of text, broken at spaces where they are longer than this.
func wrap(text string, columns int) []string {
	text = regexp.MustCompile(fmt.Sprintf(`(.{1,%d})[ \n]`, columns)).ReplaceAllString(strings.TrimSuffix(text, "\n")+"\n", "$1\n")
	return strings.Split(strings.TrimSuffix(text, "\n"), "\n")
}

// window draws a window with its lines.
func (p *picture) window(title string, x, y, width, height int, lines []string) {
	p.printf(`<svg x="%d" y="%d" width="%d" height="%d">`+"\n", x, y, width, height)
	p.printf(`<rect x=".5" y=".5" width="%d" height="%d" rx="8" fill="%s" stroke="%s"/>`+"\n", width-1, height-1, p.theme.window, p.border)
	p.printf(`<path d="M.5 %d.5v-19q0-8 8-8h%dq8 0 8 8v19z" fill="%s" stroke="%s"/>`+"\n", bar, width-17, p.bar, p.border)
	for i, colour := range []string{"#ff5f57", "#febc2e", "#28c840"} {
		p.printf(`<circle cx="%d" cy="14" r="5" fill="%s"/>`+"\n", 18+i*17, colour)
	}
	p.line((width-int(length(title, large)))/2, 18, large, p.dim, title)
	for i, s := range lines {
		p.line(pad, bar+pad+12+i*line, large, p.text, s)
	}
	p.printf("</svg>\n")
}

// line draws a line of text in a font of this size, bold what was typed. An indented one begins further to the right:
// not every browser shows spaces there.
func (p *picture) line(x, y int, size float64, colour, s string) {
	shown, typed, _ := strings.Cut(s, "\t")
	s = strings.TrimLeft(shown, " ")
	if s+typed == "" {
		return
	}
	p.printf(`<text x="%.1f" y="%d" font-size="%.0f" fill="%s" textLength="%.1f" lengthAdjust="spacingAndGlyphs">%s`,
		float64(x)+length(shown, size)-length(s, size), y, size, colour, length(s+typed, size), html.EscapeString(s))
	if typed != "" {
		p.printf(`<tspan fill="%s" font-weight="bold">%s</tspan>`, p.typed, typed)
	}
	p.printf("</text>\n")
}

// length is how long a text is in a font of this size.
func length(s string, size float64) float64 { return 0.6 * size * float64(utf8.RuneCountInString(s)) }
