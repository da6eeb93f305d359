package crdt

import "slices"

// itemNames returns the names of the items of a list by a form. It fails when
// the list is not of the form or two items share a name.
func itemNames(n *node, form string) ([]string, bool) {
	if n == nil {
		return nil, true
	}
	if n.kind != list {
		return nil, false
	}
	names := make([]string, len(n.items))
	var keys []string
	if isKeyed(form) {
		keys = keyedBy(form)
	}
	var b []byte
	for i, item := range n.items {
		var ok bool
		if b, ok = appendItemName(b[:0], item, keys); !ok {
			return nil, false
		}
		names[i] = string(b)
	}
	if !distinct(names) {
		return nil, false
	}
	return names, true
}

func appendItemName(b []byte, item *node, keys []string) ([]byte, bool) {
	if keys == nil {
		if item.kind != scalar {
			return b, false
		}
		return append(b, item.raw...), true
	}
	if item.kind != object {
		return b, false
	}
	b = append(b, '[')
	found := false
	for i, key := range keys {
		if i > 0 {
			b = append(b, ',')
		}
		switch v := item.get(key); {
		case v == nil:
			b = append(b, "null"...)
		case v.kind != scalar:
			return b, false
		default:
			found = true
			b = append(b, v.raw...)
		}
	}
	return append(b, ']'), found
}

func distinct(names []string) bool {
	if len(names) <= 16 {
		for i := range names {
			if slices.Contains(names[:i], names[i]) {
				return false
			}
		}
		return true
	}
	sorted := slices.Sorted(slices.Values(names))
	return len(slices.Compact(sorted)) == len(names)
}
