package api

import (
	"encoding/base64"
	"encoding/json"
	"math"
	"net/url"
	"strconv"

	metainternal "k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metascheme "k8s.io/apimachinery/pkg/apis/meta/internalversion/scheme"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/internalversion/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/mootkube/moot/gossip/crdt"
)

// ruling is what becomes of a request that names a place in a history.
type ruling int

const (
	// served: the place is of this history, or none is named, or the request
	// is not valid, which the API server says better.
	served ruling = iota
	// servedFresh: any state that is new enough will do; the newest is.
	servedFresh
	// expiredList: the list is to be of that very place, which is not here.
	expiredList
	// expiredToken: so is the rest of a list, but its client may have the rest
	// from the newest state.
	expiredToken
	// expiredWatch: what changed since that place cannot be told.
	expiredWatch
)

// ancient is a resource version that no watch can start from, on any node.
const ancient = "1"

// place is the result of [findPlace].
type place struct {
	ruling   ruling
	revision crdt.Revision // the foreign one
	token    string        // expiredToken: where to go on, in the newest state
}

// foreign reports whether r is no place in the history that newest ends: it
// was given out by another node, or by this one before it lost its state.
func foreign(r, newest crdt.Revision) bool {
	return r.Node() != newest.Node() || r > newest
}

// findPlace rules on a request with a query by the semantics of resource
// versions in the API, given this node's newest revision. Verb is one of get,
// list, watch and deletecollection.
//
// See https://kubernetes.io/docs/reference/using-api/api-concepts/#resource-versions.
func findPlace(verb string, query url.Values, newest crdt.Revision) place {
	if verb == "get" {
		if r, ok := foreignVersion(query.Get("resourceVersion"), newest); ok {
			return place{ruling: servedFresh, revision: r}
		}
		return place{}
	}
	var options metainternal.ListOptions
	if err := metascheme.ParameterCodec.DecodeParameters(query, metav1.SchemeGroupVersion, &options); err != nil {
		return place{}
	}
	if len(metavalidation.ValidateListOptions(&options, true)) > 0 {
		return place{}
	}
	r, isForeign := foreignVersion(options.ResourceVersion, newest)
	switch {
	case verb == "watch" && !isForeign:
		return place{}
	case verb == "watch" && options.SendInitialEvents != nil && *options.SendInitialEvents:
		return place{ruling: servedFresh, revision: r}
	case verb == "watch":
		return place{ruling: expiredWatch, revision: r}
	case options.Continue != "":
		return findToken(&options, newest)
	case !isForeign:
		return place{}
	case options.ResourceVersionMatch == metav1.ResourceVersionMatchExact,
		options.ResourceVersionMatch == "" && options.Limit > 0: // as old clients mean it
		return place{ruling: expiredList, revision: r}
	default:
		return place{ruling: servedFresh, revision: r}
	}
}

// foreignVersion returns the revision that version stands for, if it is one
// and is foreign.
func foreignVersion(version string, newest crdt.Revision) (crdt.Revision, bool) {
	n, err := strconv.ParseUint(version, 10, 64)
	if err != nil || n == 0 {
		return 0, false // 0 is any place
	}
	r := crdt.Revision(min(n, math.MaxInt64)) //nolint:gosec // bounded
	return r, foreign(r, newest)
}

// continueToken is what lists give their clients to go on with; upstream
// promises not to change it.
type continueToken struct {
	APIVersion      string `json:"v"`
	ResourceVersion int64  `json:"rv"`
	StartKey        string `json:"start"`
}

// newestState, as a token's revision, stands for the state when it is used.
const newestState = -1

func findToken(options *metainternal.ListOptions, newest crdt.Revision) place {
	if options.ResourceVersion != "" && options.ResourceVersion != "0" {
		return place{} // not valid
	}
	var token continueToken
	data, err := base64.RawURLEncoding.DecodeString(options.Continue)
	if err != nil || json.Unmarshal(data, &token) != nil {
		return place{}
	}
	r := crdt.Revision(token.ResourceVersion)
	if r <= 0 || token.APIVersion != "meta.k8s.io/v1" || token.StartKey == "" || !foreign(r, newest) {
		return place{}
	}
	token.ResourceVersion = newestState
	data, err = json.Marshal(token)
	if err != nil {
		return place{}
	}
	return place{ruling: expiredToken, revision: r, token: base64.RawURLEncoding.EncodeToString(data)}
}
