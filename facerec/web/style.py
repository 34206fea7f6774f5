"""How the pages look: one style sheet on Gradio's own colours, so that dark mode follows."""

FAVICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32">'
    '<rect width="32" height="32" rx="7" fill="#0072b2"/>'
    '<path d="M6 11V7h4M22 7h4v4M26 21v4h-4M10 25H6v-4" fill="none" stroke="#fff" '
    'stroke-width="2"/><circle cx="16" cy="14" r="4" fill="#fff"/>'
    '<path d="M9 24a7 6 0 0 1 14 0z" fill="#fff"/></svg>'
)

HEAD = """<meta name="robots" content="noindex">
<style>
@media (max-width: 640px) { .gradio-container .app { padding: 8px 14px !important; } }
</style>
"""
"""The rule is here since Gradio confines those of ``CSS`` to what is inside the page."""

CSS = """
.gradio-container { max-width: 1080px !important; margin: 0 auto !important; }
.gradio-container .html-container { padding: 0 !important; }
#people-confirm { border: 1px solid #b64a00; border-radius: 10px; padding: 14px; }
#people-question p { margin: 0; overflow-wrap: anywhere; }
#people-back, #people-remove { align-self: flex-start; width: auto; flex: none; }
.fr-actions { align-items: flex-end; }
#enrol-photos .fixed-height { min-height: 0; }
.gradio-container .fr-head { display: flex; flex-wrap: wrap; align-items: center;
  gap: 6px 24px; padding: 6px 0 2px; }
.fr-head h1 { font-size: 22px; font-weight: 700; margin: 0 !important; letter-spacing: -.01em; }
.fr-head dl { display: flex; flex-wrap: wrap; gap: 4px 20px; margin: 0; }
.fr-head dl div { display: flex; gap: 6px; font-size: 13px; }
.fr-head dt, .fr-foot, .fr-basis, .fr-facts dt, .fr-metadata dt, small
  { color: var(--body-text-color-subdued); }
.fr-head dd, .fr-facts dd, .fr-metadata dd { margin: 0; font-weight: 600; }
.fr-foot { margin-top: 12px; padding-top: 12px; border-top: 1px solid var(--border-color-primary);
  font-size: 13px; line-height: 1.5; overflow-wrap: anywhere; }
.fr-foot p { margin: 0 0 4px; color: var(--body-text-color-subdued); }

.fr-notice { padding: 12px 14px; border-radius: 8px; border: 1px solid; border-left-width: 5px;
  background: var(--block-background-fill); overflow-wrap: anywhere; line-height: 1.45; }
.fr-error { border-color: #d55e00; }
.fr-good.fr-notice { border-color: #009e73; }
.fr-plain.fr-notice { border-color: var(--border-color-primary); }

.fr-result h2 small { font-weight: 400; font-size: 13px; margin-left: 6px;
  white-space: nowrap; }
.fr-result h2 { font-size: 17px; margin: 0 0 10px !important; }
.fr-picture { width: 100%; height: auto; border-radius: 8px; display: block; }
.fr-basis { font-size: 14px; line-height: 1.5; margin: 10px 0; }
.fr-faces, .fr-drafts, .fr-outcomes, .fr-people, .fr-templates, .fr-candidates
  { list-style: none !important; margin: 0 !important; padding: 0 !important; }
.fr-faces, .fr-drafts, .fr-outcomes { display: grid; gap: 10px; }
.fr-outcomes { margin: 10px 0 !important; }
.fr-card { border: 1px solid var(--border-color-primary); border-radius: 10px; padding: 12px;
  margin: 0 !important; background: var(--block-background-fill); min-width: 0; }
.fr-card.fr-known { border-left: 5px solid #0072b2; }
.fr-card.fr-unknown { border-left: 5px solid #e69f00; }
.fr-face, .fr-row { display: flex; gap: 14px; align-items: flex-start; }
.fr-who, .fr-row > div { flex: 1; min-width: 0; }
.fr-who h3 { font-size: 17px; margin: 0 0 6px !important; overflow-wrap: anywhere; }
.fr-number { display: inline-block; min-width: 22px; text-align: center; margin-right: 8px;
  border-radius: 5px; font-size: 13px; padding: 1px 4px; background: var(--border-color-primary); }
.fr-crop { width: 84px; height: 84px; object-fit: cover; border-radius: 8px; flex: none;
  display: block; }
span.fr-none { display: grid; place-items: center; background: var(--border-color-primary);
  color: var(--body-text-color-subdued); }
.fr-facts { display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 0 0 8px; font-size: 14px; }
.fr-facts div { display: flex; gap: 6px; }
.fr-facts dd { font-variant-numeric: tabular-nums; }
.fr-meter { position: relative; height: 8px; border-radius: 4px; max-width: 420px;
  background: var(--border-color-primary); }
.fr-meter i { display: block; height: 100%; border-radius: 4px; background: #0072b2; }
.fr-meter.fr-unknown i { background: #e69f00; }
.fr-meter b { position: absolute; top: -4px; height: 16px; width: 3px; margin-left: -1px;
  border-radius: 2px; background: var(--body-text-color); }
.fr-card h4 { font-size: 13px; font-weight: 600; margin: 12px 0 6px !important;
  color: var(--body-text-color-subdued); }
.fr-candidates { display: grid; grid-template-columns: repeat(5, minmax(0, 1fr)); gap: 8px; }
.fr-candidate { margin: 0 !important; font-size: 12px; text-align: center; opacity: .75; }
.fr-candidate.fr-match { opacity: 1; }
.fr-candidate .fr-crop { width: 100%; height: auto; aspect-ratio: 1;
  border: 3px solid transparent; }
.fr-candidate.fr-match .fr-crop { border-color: #0072b2; }
.fr-candidate span:not(.fr-none) { display: block; white-space: nowrap; overflow: hidden;
  text-overflow: ellipsis; margin-top: 3px; }
.fr-candidate b { font-variant-numeric: tabular-nums; }

.fr-pair { display: grid; grid-template-columns: 1fr 1fr; gap: 12px; margin-top: 12px; }
.fr-pair figure { margin: 0; min-width: 0; }
.fr-pair img { width: 100%; max-height: 420px; object-fit: contain; object-position: top left;
  border-radius: 8px; }
.fr-pair figcaption { font-size: 13px; overflow-wrap: anywhere;
  color: var(--body-text-color-subdued); }
.fr-card.fr-known h2, .fr-card.fr-unknown h2 { font-size: 20px; }
.fr-card p { margin: 6px 0 0; }

.fr-file { font-size: 14px; overflow-wrap: anywhere; }
.fr-badge { display: inline-block; border-radius: 5px; padding: 1px 8px; margin-right: 6px;
  font-size: 13px; font-weight: 600; background: var(--border-color-primary); }
.fr-badge.fr-good { background: #009e73; color: #fff; }
.fr-badge.fr-warn { background: #e69f00; color: #000; }
.fr-badge.fr-bad { background: #b64a00; color: #fff; }
p.fr-bad { color: #b64a00; }
.dark p.fr-bad { color: #ff9a57; }
.fr-strip { display: flex; flex-wrap: wrap; gap: 8px; margin-top: 8px; }
.fr-pick { padding: 0; border: 4px solid transparent; border-radius: 10px; background: none;
  cursor: pointer; line-height: 0; }
.fr-pick img { width: 84px; height: 84px; object-fit: cover; border-radius: 6px; }
.fr-pick:hover { border-color: var(--border-color-primary); }
.fr-pick[aria-pressed=true] { border-color: #0072b2; }
.fr-pick:focus-visible, .fr-person:focus-visible, .fr-button:focus-visible
  { outline: 3px solid #56b4e9; outline-offset: 2px; }

.fr-people { display: grid; grid-template-columns: repeat(auto-fill, minmax(260px, 1fr));
  gap: 10px; }
.fr-people li { margin: 0 !important; min-width: 0; }
.fr-person { display: flex; gap: 12px; align-items: center; width: 100%; padding: 8px;
  text-align: left; cursor: pointer; border: 1px solid var(--border-color-primary);
  border-radius: 10px; background: var(--block-background-fill); color: inherit; }
.fr-person:hover { border-color: #0072b2; }
.fr-person .fr-crop { width: 56px; height: 56px; }
.fr-person > span:last-child { min-width: 0; flex: 1; overflow-wrap: anywhere; }
.fr-person small { display: block; font-weight: 400; }
.fr-pager { display: flex; gap: 14px; align-items: center; justify-content: center;
  margin: 14px 0 4px; }
.fr-button { padding: 6px 11px; border-radius: 8px; cursor: pointer; font-size: 13px;
  white-space: nowrap;
  border: 1px solid var(--border-color-primary);
  background: var(--button-secondary-background-fill);
  color: var(--button-secondary-text-color); margin: 4px 6px 0 0; }
.fr-button:disabled { opacity: .4; cursor: default; }
.fr-button.fr-bad { background: #b64a00; border-color: #b64a00; color: #fff; }
.fr-name { font-size: 22px; margin: 0 !important; overflow-wrap: anywhere; }
.fr-metadata { display: grid; gap: 4px; margin: 8px 0; font-size: 14px; }
.fr-metadata div { display: flex; gap: 10px; overflow-wrap: anywhere; }
.fr-templates { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr));
  gap: 10px; margin-top: 10px !important; }
.fr-templates .fr-crop { width: 100%; height: auto; aspect-ratio: 1; }
.fr-templates .fr-file { font-size: 13px; display: -webkit-box; -webkit-line-clamp: 2;
  -webkit-box-orient: vertical; overflow: hidden; margin-top: 6px; }

@media (max-width: 640px) {
  .fr-head dl { gap: 2px 14px; }
  .fr-crop, .fr-pick img { width: 72px; height: 72px; }
  .fr-face { gap: 10px; }
  .fr-facts { gap: 2px 14px; }
  .fr-pair { gap: 8px; }
  .tab-container button { padding: 0 8px !important; }  /* so that five tabs fit */
}
"""
