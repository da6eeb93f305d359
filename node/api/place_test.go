package api

import (
	"encoding/base64"
	"fmt"
	"net/url"
	"testing"
	"time"

	"k8s.io/apiserver/pkg/storage"

	"github.com/mootkube/moot/gossip/crdt"
)

func revision(node crdt.NodeNumber, second int) crdt.Revision {
	return crdt.RevisionAt(time.Date(2026, 11, 24, 0, 0, second, 0, time.UTC), node)
}

func TestFindPlace(t *testing.T) {
	newest := revision(7, 30)
	const exact, notOlder = "&resourceVersionMatch=Exact", "&resourceVersionMatch=NotOlderThan"
	// What is asked for with a foreign version; with any other it is served.
	for _, c := range []struct {
		verbs []string
		query string // R: the version
		want  ruling
	}{
		{[]string{"get"}, "resourceVersion=R", servedFresh},
		{[]string{"get"}, "resourceVersion=R&watch=true", servedFresh}, // of one object by name
		{[]string{"list", "deletecollection"}, "resourceVersion=R", servedFresh},
		{[]string{"list", "deletecollection"}, "resourceVersion=R" + notOlder, servedFresh},
		{[]string{"list", "deletecollection"}, "resourceVersion=R&limit=5" + notOlder, servedFresh},
		{[]string{"list", "deletecollection"}, "resourceVersion=R&limit=0", servedFresh},
		{[]string{"list", "deletecollection"}, "resourceVersion=R&limit=5", expiredList},
		{[]string{"list", "deletecollection"}, "resourceVersion=R" + exact, expiredList},
		{[]string{"list", "deletecollection"}, "resourceVersion=R&limit=5" + exact, expiredList},
		{[]string{"list"}, "resourceVersion=R&fieldSelector=metadata.name%3Dx", servedFresh},
		{[]string{"watch"}, "watch=true&resourceVersion=R", expiredWatch},
		{[]string{"watch"}, "resourceVersion=R", expiredWatch}, // /watch/ in the path
		{[]string{"watch"}, "watch=true&resourceVersion=R&allowWatchBookmarks=true", expiredWatch},
		{[]string{"watch"}, "watch=true&resourceVersion=R&sendInitialEvents=false" + notOlder, expiredWatch},
		{[]string{"watch"}, "watch=true&resourceVersion=R&sendInitialEvents=true" + notOlder, servedFresh},
		{[]string{"watch"}, "watch=true&resourceVersion=R&sendInitialEvents=true&allowWatchBookmarks=true" + notOlder, servedFresh},
		// Not valid: upstream says so.
		{[]string{"list", "deletecollection"}, "resourceVersion=R&resourceVersionMatch=Newest", served},
		{[]string{"list"}, "resourceVersion=R&sendInitialEvents=true" + notOlder, served},
		{[]string{"list"}, "resourceVersion=R&limit=some", served},
		{[]string{"watch"}, "watch=true&resourceVersion=R" + notOlder, served},
		{[]string{"watch"}, "watch=true&resourceVersion=R&sendInitialEvents=true" + exact, served},
		{[]string{"watch"}, "watch=true&resourceVersion=R&sendInitialEvents=true", served},
		{[]string{"get", "list", "watch", "deletecollection"}, "resourceVersion=xR", served},
		{[]string{"get", "list", "watch", "deletecollection"}, "resourceVersion=-R", served},
		{[]string{"get", "list", "watch", "deletecollection"}, "resourceVersion=", served},
		{[]string{"get", "list", "watch", "deletecollection"}, "fieldManager=x", served},
		// The first of several counts.
		{[]string{"list"}, "resourceVersion=R&resourceVersion=1" + exact, expiredList},
		{[]string{"list"}, "resourceVersion=0&resourceVersion=R", served},
	} {
		for _, verb := range c.verbs {
			for version, isForeign := range map[string]bool{
				"0":                                      false,
				fmt.Sprint(int64(newest)):                false,
				fmt.Sprint(int64(revision(7, 0))):        false,
				fmt.Sprint(int64(revision(8, 0))):        true,
				fmt.Sprint(int64(revision(8, 59))):       true,
				fmt.Sprint(int64(revision(7, 31))):       true, // lost
				fmt.Sprint(int64(newest + 1<<16)):        true,
				"9223372036854775807":                    true,
				"18446744073709551615":                   true,
				"118446744073709551615":                  false, // no number
				"00" + fmt.Sprint(int64(revision(8, 0))): true,
			} {
				query, err := url.ParseQuery(replaceR(c.query, version))
				if err != nil {
					t.Fatal(err)
				}
				want := served
				if isForeign {
					want = c.want
				}
				if got := findPlace(verb, query, newest); got.ruling != want {
					t.Errorf("%s %s with %s: %v, want %v", verb, c.query, version, got.ruling, want)
				}
			}
		}
	}
}

func replaceR(query, version string) string {
	var out []byte
	for i := range len(query) {
		if query[i] == 'R' && i > 0 && (query[i-1] == '=' || query[i-1] == 'x' || query[i-1] == '-') {
			out = append(out, version...)
			continue
		}
		out = append(out, query[i])
	}
	return string(out)
}

func TestFindToken(t *testing.T) {
	newest := revision(7, 30)
	token := func(r int64) string {
		token, err := storage.EncodeContinue("/pods/default/web\x00", "/pods/", r)
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	raw := func(text string) string { return base64.RawURLEncoding.EncodeToString([]byte(text)) }
	foreign := token(int64(revision(8, 0)))
	for name, c := range map[string]struct {
		token, more string
		want        ruling
	}{
		"own":                  {token(int64(revision(7, 0))), "", served},
		"own, newest":          {token(int64(newest)), "&limit=5", served},
		"own, lost":            {token(int64(revision(7, 31))), "", expiredToken},
		"foreign":              {foreign, "&limit=5", expiredToken},
		"foreign, any version": {foreign, "&resourceVersion=0", expiredToken},
		"newest state":         {token(newestState), "", served},
		"with a version":       {foreign, fmt.Sprintf("&resourceVersion=%d", revision(8, 0)), served}, // not valid
		"with a match":         {foreign, "&resourceVersion=5&resourceVersionMatch=Exact", served},    // not valid
		"no base64":            {"%%%", "", served},
		"no JSON":              {raw("x"), "", served},
		"other version":        {raw(`{"v":"v2","rv":5,"start":"a"}`), "", served},
		"no start":             {raw(`{"v":"meta.k8s.io/v1","rv":5}`), "", served},
	} {
		for _, verb := range []string{"list", "deletecollection"} {
			query, err := url.ParseQuery("continue=" + url.QueryEscape(c.token) + c.more)
			if err != nil {
				t.Fatal(err)
			}
			got := findPlace(verb, query, newest)
			if got.ruling != c.want {
				t.Errorf("%s, %s: %v, want %v", name, verb, got.ruling, c.want)
			}
			if got.ruling != expiredToken {
				continue
			}
			key, at, err := storage.DecodeContinue(got.token, "/pods/")
			if err != nil || key != "/pods/default/web\x00" || at != newestState {
				t.Errorf("%s: the new token is for %q at %d: %v", name, key, at, err)
			}
		}
	}
}
