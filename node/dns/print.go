package dns

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/coredns/caddy/caddyfile"
)

// splitDirectives takes apart the tokens of a directive that was used several
// times in a block: the parser keeps them one after the other.
func splitDirectives(name string, tokens []caddyfile.Token) [][]caddyfile.Token {
	var out [][]caddyfile.Token
	depth := 0
	for i, t := range tokens {
		switch t.Text {
		case "{":
			depth++
		case "}":
			depth--
		}
		if t.Text == name && depth == 0 && (i == 0 || newLine(tokens[i-1], t)) {
			out = append(out, nil)
		}
		if len(out) == 0 {
			out = append(out, nil)
		}
		out[len(out)-1] = append(out[len(out)-1], t)
	}
	return out
}

// newLine tells whether t begins a line. Text of an earlier token may span lines.
func newLine(before, t caddyfile.Token) bool {
	return before.File != t.File || before.Line+strings.Count(before.Text, "\n") != t.Line
}

// printBlock writes a server block so that parsing it gives the same tokens on
// the same lines, relative to each other.
func printBlock(b *strings.Builder, block caddyfile.ServerBlock) error {
	keys := make([]string, len(block.Keys))
	for i, key := range block.Keys {
		if keys[i] = quote(key); keys[i] == "" {
			return errors.New("parse Corefile: a server block with an empty address")
		}
	}
	fmt.Fprintf(b, "%s {\n", strings.Join(keys, " "))
	names := make([]string, 0, len(block.Tokens))
	for name := range block.Tokens {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		tokens := block.Tokens[name]
		for i, t := range tokens {
			switch {
			case i == 0:
				b.WriteString("    ")
			case newLine(tokens[i-1], t):
				b.WriteString("\n    ")
			default:
				b.WriteByte(' ')
			}
			b.WriteString(quote(t.Text))
		}
		b.WriteByte('\n')
	}
	b.WriteString("}\n")
	return nil
}

// quote writes a word so that the lexer reads it back as one.
func quote(word string) string {
	if word != "" && !strings.ContainsAny(word, " \t\r\n\v\f\"#\\\u0085\u00a0") {
		return word
	}
	return `"` + strings.ReplaceAll(word, `"`, `\"`) + `"`
}
