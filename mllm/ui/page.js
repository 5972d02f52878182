// The drop area of Gradio takes files and fails for a folder. The files of a dropped folder go to the button that opens
// a folder instead.
async function filesOf(entry) {
  if (entry.isFile) return [await new Promise((resolve, reject) => entry.file(resolve, reject))];
  const reader = entry.createReader();
  const files = [];
  // A reader returns its entries in parts, and then an empty one.
  for (let part = null; part === null || part.length > 0; ) {
    part = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    for (const inner of part) files.push(...(await filesOf(inner)));
  }
  return files;
}

async function takeFolder(event) {
  const area = event.target.closest("#files");
  if (area === null) return;
  const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry()).filter(Boolean);
  if (!entries.some((entry) => entry.isDirectory)) return;
  event.preventDefault();
  event.stopPropagation();
  event.target.dispatchEvent(new DragEvent("dragleave", { bubbles: true, cancelable: true }));
  const taken = new DataTransfer();
  for (const entry of entries) for (const file of await filesOf(entry)) taken.items.add(file);
  const input = document.querySelector("input[webkitdirectory]");
  input.files = taken.files;
  input.dispatchEvent(new Event("change", { bubbles: true }));
}

document.addEventListener("drop", takeFolder, true);
