package crdt

import (
	"bytes"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
)

// name returns the string at the front as it is meant.
func (p *parser) name() (string, bool) {
	start := p.i
	if p.next() != '"' {
		return "", false
	}
	raw, ok := p.str()
	if !ok {
		return "", false
	}
	if len(raw) == p.i-start && bytes.IndexByte(raw, '\\') < 0 {
		return p.s[start+1 : p.i-1], true
	}
	plain, ok := unescape(raw[1 : len(raw)-1])
	return string(plain), ok
}

// str returns the string at the front, quotes and all, in canonical form.
func (p *parser) str() ([]byte, bool) {
	start := p.i
	p.i++
	canonical, ascii := true, true
	for p.i < len(p.b) {
		switch c := p.b[p.i]; {
		case c == '"':
			p.i++
			s := p.b[start:p.i:p.i]
			if canonical && (ascii || utf8.Valid(s)) {
				return s, true
			}
			plain, ok := unescape(s[1 : len(s)-1])
			return appendString(make([]byte, 0, len(s)), string(plain)), ok
		case c == '\\':
			if p.i+1 >= len(p.b) {
				return nil, false
			}
			switch p.b[p.i+1] {
			case '"', '\\', 'n', 'r', 't':
			default:
				canonical = false
			}
			p.i += 2
			continue
		case c < ' ':
			return nil, false
		case c >= utf8.RuneSelf:
			ascii = false
		}
		p.i++
	}
	return nil, false
}

// unescape returns what stands between the quotes of a JSON string. What is
// not UTF-8 becomes U+FFFD.
func unescape(s []byte) ([]byte, bool) {
	if bytes.IndexByte(s, '\\') < 0 && utf8.Valid(s) {
		return s, true
	}
	out := make([]byte, 0, len(s))
	for i := 0; i < len(s); {
		c := s[i]
		if c != '\\' {
			r, size := utf8.DecodeRune(s[i:])
			out = utf8.AppendRune(out, r)
			i += size
			continue
		}
		if i+1 >= len(s) {
			return nil, false
		}
		if s[i+1] == 'u' {
			r, size := unescapeRune(s[i:])
			if size == 0 {
				return nil, false
			}
			out = utf8.AppendRune(out, r)
			i += size
			continue
		}
		at := bytes.IndexByte([]byte(`"\/bfnrt`), s[i+1])
		if at < 0 {
			return nil, false
		}
		out = append(out, "\"\\/\b\f\n\r\t"[at])
		i += 2
	}
	return out, true
}

// unescapeRune reads one \u escape, or two that make a surrogate pair. It
// returns size 0 when there is none.
func unescapeRune(s []byte) (r rune, size int) {
	r, ok := hex4(s)
	if !ok {
		return 0, 0
	}
	if utf16.IsSurrogate(r) {
		if low, ok := hex4(s[6:]); ok {
			if pair := utf16.DecodeRune(r, low); pair != utf8.RuneError {
				return pair, 12
			}
		}
		return utf8.RuneError, 6
	}
	return r, 6
}

func hex4(s []byte) (rune, bool) {
	if len(s) < 6 || s[0] != '\\' || s[1] != 'u' {
		return 0, false
	}
	u, err := strconv.ParseUint(string(s[2:6]), 16, 16)
	return rune(u), err == nil
}

func appendString(b []byte, s string) []byte {
	const digits = "0123456789abcdef"
	b = append(b, '"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b = append(b, '\\', byte(r))
		case r == '\n':
			b = append(b, '\\', 'n')
		case r == '\r':
			b = append(b, '\\', 'r')
		case r == '\t':
			b = append(b, '\\', 't')
		case r < ' ':
			b = append(b, '\\', 'u', '0', '0', digits[r>>4], digits[r&15])
		default:
			b = utf8.AppendRune(b, r)
		}
	}
	return append(b, '"')
}

// quoted returns s as a scalar.
func quoted(s string) *node { return &node{kind: scalar, raw: appendString(nil, s)} }
